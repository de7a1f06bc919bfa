"""Threads for reading: many small waits in parallel, in blocks to keep the overhead low."""
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_BLOCK = 8
_THREADS = 64  # More than the cores: on a network most of them wait.

_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix='conic_jax-read')

Item = TypeVar('Item')
Result = TypeVar('Result')


def cores() -> int:
  """Number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def map_blocks(function: Callable[[Item], Result], items: Sequence[Item],
               block: int = _BLOCK) -> list[Result]:
  """Computes `[function(item) for item in items]`, block by block in parallel threads.

  `function` must not call `map_blocks`: the threads would wait for each other and deadlock.
  """
  def run(start: int) -> Iterable[Result]:
    return [function(item) for item in items[start:start + block]]
  return [result for results in _pool.map(run, range(0, len(items), block)) for result in results]
