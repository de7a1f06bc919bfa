"""The main command: parses flags, starts distributed runs, and runs the config's task.

  python -m conic_jax.main --config=configs/conic.py:photos
"""
import sys

import jax
from absl import flags
from ml_collections import config_flags

from conic_jax import command_line
from conic_jax.errors import UserError

_USAGE = 'usage: python -m conic_jax.main --config=FILE[:PRESET] [--config.FIELD=VALUE …].'


def define_flags(argv: list[str]) -> flags.FlagValues:
  """Defines the command's flags without parsing them; config-field flags come from `argv`."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/, with a preset after a colon.', flag_values=values,
    sys_argv=argv)
  flags.DEFINE_bool(
    'distributed', False, 'Join the cluster that the environment describes (Slurm, a TPU pod).',
    flag_values=values)
  flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, where the environment describes no cluster.',
    flag_values=values)
  flags.DEFINE_integer('num_processes', None, 'Processes of the cluster.', flag_values=values)
  flags.DEFINE_integer('process_id', None, 'This process, from 0.', flag_values=values)
  return values


def start_distributed(values: flags.FlagValues) -> None:
  """Joins this process to its cluster if the flags name one."""
  if not (values.distributed or values.coordinator):
    if values.num_processes or values.process_id is not None:
      raise UserError('--num_processes and --process_id need --coordinator=HOST:PORT of process 0.')
    return
  if jax.config.jax_platforms == 'cpu':
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(values.coordinator, values.num_processes, values.process_id)


def run_task(config) -> None:
  """Runs `config.task`."""
  if config.task == 'pretrain':
    from conic_jax.pretraining import training
    training.pretrain(config)
  else:
    from conic_jax.evals import standalone
    standalone.evaluate(config)


def run(values: flags.FlagValues) -> None:
  """Joins the cluster and runs the task."""
  start_distributed(values)
  run_task(values.config)


def command() -> None:
  """Runs the command and sets its exit code."""
  command_line.run_with_config(
    run, define_flags(sys.argv), _USAGE,
    'interrupted. A pretraining goes on from its last checkpoint with the same command.')


if __name__ == '__main__':
  command()
