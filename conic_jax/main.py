"""The command: flags, distributed start, and the task that the config names.

  python -m conic_jax.main --config=configs/conic.py:photos
"""
import sys

import jax
from absl import flags
from ml_collections import config_flags

from conic_jax import command_line
from conic_jax.errors import Stopped, UserError

TASKS = ('pretrain', 'knn', 'linear')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of configs/, with a preset after a colon: configs/conic.py:photos.')
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'host:port of process 0, where no cluster environment (Slurm, a TPU pod, …) '
  'tells; with --num_processes and --process_id.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of the cluster.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'This process, from 0.')
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join a cluster that the environment describes (Slurm, a TPU pod, …).')


def start_distributed() -> None:
  """Joins this process to its cluster, where the flags name one."""
  if not (_DISTRIBUTED.value or _COORDINATOR.value):
    return
  if jax.config.jax_platforms == 'cpu':
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)


def run_task(config) -> None:
  """Runs `config.task`."""
  if config.task == 'pretrain':
    from conic_jax import train
    train.pretrain(config)
  elif config.task in TASKS:
    from conic_jax.evals import standalone
    standalone.evaluate(config)
  else:
    raise UserError(f"config.task is '{config.task}'; there is: {', '.join(TASKS)}.")


def command() -> None:
  """The whole command, with its exit code: 0, 1 for a user's error, 128 + the signal when stopped."""
  try:
    if rest := command_line.parse(sys.argv):
      raise UserError(f"'{rest[0]}' is no flag: settings are given as --config.FIELD=VALUE.")
    start_distributed()
    run_task(_CONFIG.value)
  except UserError as error:
    sys.exit(f'conic_jax: {error}')
  except Stopped as stopped:
    print(f'conic_jax: {stopped}', file=sys.stderr)
    sys.exit(stopped.exit_code)


if __name__ == '__main__':
  command()
