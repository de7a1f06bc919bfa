"""A process of a cluster that exchanges numbers.

HOST:PORT COUNT INDEX FOLDER LOST_AFTER [START_WITHIN [HUNG_AFTER]]

A file 'fail' in the folder makes process 1 end with a user's error, 'hang' makes it hang, 'end' makes all
finish.
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
from conic_jax.hardware.watchdog import stepping, watched
from conic_jax.run.signals import StopRequest


def exchange(folder):
  """Counts in collectives; writes the count, so that a test sees it grow."""
  count, index = 0, jax.process_index()
  with StopRequest() as signals, signals.deferred(), stepping() as watchdog:
    while True:
      watchdog.feed()
      while index == 1 and (folder / 'hang').exists():
        time.sleep(0.1)
      wants = np.int32([(folder / 'end').exists(), index == 1 and (folder / 'fail').exists()])
      if wants[1]:
        raise UserError('It failed on purpose.')
      told = multihost_utils.process_allgather(wants)
      count += 1
      (folder / f'count-{index}').write_text(str(count))
      if told[:, 0].any():
        return
      time.sleep(0.02)


# Of START_WITHIN and HUNG_AFTER.
DEFAULTS = (120, 0)


def main():
  address, count, index, folder = sys.argv[1:5]
  lost_after, start_within, hung_after = map(float, [*sys.argv[5:], *DEFAULTS[len(sys.argv) - 6:]])
  place = find_place(address, int(count), int(index), 5.0)
  say = functools.partial(print, file=sys.stderr)
  with (joined(place, lost_after, start_within, lambda: 'run/checkpoints/7', say) as watch,
        watched(hung_after, watch.end_hung)):
    exchange(Path(folder))


if __name__ == '__main__':
  guarded(main)
