"""A process of a cluster that exchanges numbers: HOST:PORT COUNT INDEX FOLDER LOST_AFTER [START_WITHIN].

A file 'fail' in the folder makes process 1 end with a user's error, 'end' makes all finish.
"""
import functools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import numpy as np
from jax.experimental import multihost_utils

from conic_jax.command_line import guarded
from conic_jax.errors import UserError
from conic_jax.hardware.cluster import joined
from conic_jax.hardware.place import find_place
from conic_jax.run.signals import StopRequest


def exchange(folder):
  """Counts in collectives; writes the count, so that a test sees it grow."""
  count, index = 0, jax.process_index()
  with StopRequest() as signals, signals.deferred():
    while True:
      wants = np.int32([(folder / 'end').exists(), index == 1 and (folder / 'fail').exists()])
      if wants[1]:
        raise UserError('It failed on purpose.')
      told = multihost_utils.process_allgather(wants)
      count += 1
      (folder / f'count-{index}').write_text(str(count))
      if told[:, 0].any():
        return
      time.sleep(0.02)


def main():
  address, count, index, folder = sys.argv[1:5]
  lost_after, start_within = float(sys.argv[5]), float(sys.argv[6] if len(sys.argv) > 6 else 120.0)
  place = find_place(address, int(count), int(index), 5.0)
  say = functools.partial(print, file=sys.stderr)
  with joined(place, lost_after, start_within, lambda: 'run/checkpoints/7', say):
    exchange(Path(folder))


if __name__ == '__main__':
  guarded(main)
