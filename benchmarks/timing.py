"""Steps timed in turn, so that what else the machine does falls on all of them alike."""
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def interleaved(steps: Mapping[str, Callable[[], Any]], repeats: int,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, np.ndarray]:
  """Seconds of steps that take turns, each of which waits for its result; the first of each is left out.

  Args:
    steps: the steps by name; the first run of each may compile.
    repeats: seconds of each.
    clock: `time.process_time` for those of the processor.
  """
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(repeats + 1):
    for name, step in steps.items():
      start = clock()
      step()
      seconds[name].append(clock() - start)
  return {name: np.array(values[1:]) for name, values in seconds.items()}
