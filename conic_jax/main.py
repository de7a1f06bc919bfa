"""The main command: parses flags, starts distributed runs, and runs the config's task.

  python -m conic_jax.main --config=configs/conic.py:photos
"""
import functools
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from conic_jax.ending import end_hung, end_while_starting

if __name__ == '__main__':
  end_while_starting()
# Read when jaxlib is loaded: what its services log means nothing to the user.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from absl import flags

from conic_jax import command_line
from conic_jax.buckets.run_folder import run_folder
from conic_jax.errors import UserError
from conic_jax.hardware.cluster import joined
from conic_jax.hardware.place import Place, find_place
from conic_jax.hardware.processes import find_devices
from conic_jax.hardware.watchdog import watched
from conic_jax.run.whole import steps_in
from conic_jax.terminal import print_line

_USAGE = 'usage: python -m conic_jax.main --config=FILE[:PRESET] [--config.FIELD=VALUE …].'


def define_flags(argv: list[str]) -> flags.FlagValues:
  """Defines the command's flags without parsing them; config-field flags come from `argv`."""
  values = flags.FlagValues()
  command_line.define_config(values, argv)
  flags.DEFINE_bool(
    'distributed', False, 'Join the cluster that the environment describes (Slurm, a TPU pod).',
    flag_values=values)
  flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, where the environment describes no cluster.',
    flag_values=values)
  flags.DEFINE_integer('num_processes', None, 'Processes of the cluster.', flag_values=values)
  flags.DEFINE_integer('process_id', None, 'This process, from 0.', flag_values=values)
  flags.DEFINE_float(
    'lost_after', 60.0, 'Seconds after which a silent process of the cluster is lost, and the others end.',
    lower_bound=1.0, flag_values=values)
  flags.DEFINE_float(
    'hung_after', 1800.0, 'Seconds after which a step that does not end is hung, and all processes end; 0: '
    'never.', lower_bound=0.0, flag_values=values)
  flags.DEFINE_float(
    'start_within', 120.0, 'Seconds that the processes of the cluster have to find each other.',
    lower_bound=1.0, flag_values=values)
  return values


def place_of(values: flags.FlagValues) -> Place | None:
  """This process's place in the cluster; None if the flags name no cluster.

  Raises:
    UserError: if flags are missing or wrong.
  """
  if not (values.distributed or values.coordinator):
    if values.num_processes is not None or values.process_id is not None:
      raise UserError('--num_processes and --process_id need --coordinator=HOST:PORT of process 0.')
    return None
  return find_place(values.coordinator, values.num_processes, values.process_id, values.start_within)


def task_of(config: Any) -> Callable[[Any], Any]:
  """What runs `config.task`."""
  # What is imported stays: looking for garbage in it takes a good part of the time of an import.
  gc.disable()
  try:
    if config.task == 'pretrain':
      from conic_jax.pretraining import training
      return training.pretrain
    from conic_jax.evals import standalone
    return standalone.evaluate
  finally:
    gc.freeze()
    gc.enable()


def last_checkpoint(config: Any) -> str | None:
  """The folder of a pretraining's last finished checkpoint; None if it has none."""
  folder = run_folder(config.run).large / 'checkpoints'
  steps = steps_in(folder) if config.task == 'pretrain' else []
  return str(folder / str(steps[-1])) if steps else None


def run(values: flags.FlagValues) -> None:
  """Joins the cluster and runs the task."""
  config, place = values.config, place_of(values)
  last = functools.partial(last_checkpoint, config)
  if place is None:
    find_devices()
    with watched(values.hung_after, functools.partial(end_hung, last_checkpoint=last)):
      task_of(config)(config)
    return
  task = task_of(config)  # Its slow imports come before the others wait for this process.
  with (joined(place, values.lost_after, values.start_within, last,
               lambda line: print_line(line, sys.stderr)) as watch,
        watched(values.hung_after, watch.end_hung)):
    task(config)


def command() -> None:
  """Runs the command and sets its exit code."""
  command_line.run_with_config(
    run, define_flags(sys.argv), _USAGE,
    'interrupted. A pretraining goes on from its last checkpoint with the same command.')


if __name__ == '__main__':
  command()
