"""Threads for reading: many small waits at once, in blocks, so that handing over costs little."""
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_BLOCK = 8
_THREADS = 64  # More than cores: over a network most of them wait.

_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix='conic_jax-read')

Item = TypeVar('Item')
Result = TypeVar('Result')


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def map_blocks(function: Callable[[Item], Result], items: Sequence[Item],
               block: int = _BLOCK) -> list[Result]:
  """`[function(item) for item in items]`, blocks of them in parallel threads.

  `function` must not call `map_blocks`: with every thread waiting for another nothing would move.
  """
  def run(start: int) -> Iterable[Result]:
    return [function(item) for item in items[start:start + block]]
  return [result for results in _pool.map(run, range(0, len(items), block)) for result in results]
