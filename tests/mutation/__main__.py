"""Puts faults into the package, one at a time, and counts those that the tests notice.

  python -m tests.mutation                            a tenth of all faults of every module
  python -m tests.mutation losses --share=1           all faults of one
  python -m tests.mutation --share=0.3 --workers=2    goes on: what has a line is not done again

Each fault is tried on the tests that guards.py names for its module, in a copy of the checkout. A line is
kept of each in results.jsonl; those of a module begin anew when the module or its tests change. The shares
are in docs/testing.md, which this writes. It needs `pip install -e '.[mutation]'`.
"""
import argparse
import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.mutants.__main__ import ROOT, copy_checkout
from tests.mutation.faults import Fault, faults, mutated
from tests.mutation.guards import GUARDS
from tests.mutation.table import RESULTS, read_results, write_page

_AT_LEAST_SECONDS, _TIMES_LONGER = 60.0, 4.0


def main() -> None:
  """Tries the faults that have no line yet, and writes the page."""
  parser = argparse.ArgumentParser('python -m tests.mutation', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('modules', nargs='*', help=f'all without: {", ".join(GUARDS)}')
  parser.add_argument('--share', type=float, default=0.1, help='of the faults of a module, drawn by chance')
  parser.add_argument('--workers', type=int, default=1)
  parser.add_argument('--minutes', type=float, default=float('inf'), help='begin no module after so many')
  parser.add_argument('--list', action='store_true', help='count the faults, and try none')
  args = parser.parse_args()
  if unknown := set(args.modules) - set(GUARDS):
    parser.error(f'no module {", ".join(sorted(unknown))}; there is: {", ".join(GUARDS)}')
  modules = args.modules or list(GUARDS)
  done = {(line['module'], line['version'], line['operator'], line['occurrence']) for line in read_results()}
  work: queue.Queue[tuple[str, list[Fault]]] = queue.Queue()
  for module in modules:
    chosen = list(faults(ROOT, f'conic_jax/{module}.py', args.share))
    left = [fault for fault in chosen
            if (module, version(module), fault.operator, fault.occurrence) not in done]
    if args.list:
      print(f'{module}: {len(left)} of {len(chosen)}')
    elif left:
      work.put((module, left))
  if args.list:
    return
  with tempfile.TemporaryDirectory() as folder:
    threads = [threading.Thread(target=work_off, args=(work, Path(folder) / str(index), args.minutes))
               for index in range(args.workers)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  write_page()


def version(module: str) -> str:
  """What names a module together with the tests that guard it."""
  texts = [(ROOT / path).read_bytes() for path in (f'conic_jax/{module}.py', *GUARDS[module])]
  return hashlib.sha256(b'\0'.join(texts)).hexdigest()[:12]


def work_off(work: queue.Queue, copy: Path, minutes: float) -> None:
  """Tries the faults of module after module in a copy of its own."""
  copy_checkout(copy)
  over = threading.Event()
  timer = threading.Timer(min(60 * minutes, threading.TIMEOUT_MAX), over.set)
  timer.daemon = True
  timer.start()
  with contextlib.suppress(queue.Empty), worker(copy) as process:
    while not over.is_set():
      module, chosen = work.get_nowait()
      path = f'conic_jax/{module}.py'
      source = (copy / path).read_text()
      whole = ask(process, path, source, GUARDS[module], 3600)
      if whole['code'] != 0:
        raise SystemExit(f'{module}: its tests fail without any fault; see {copy / "mutation.log"}')
      longest = max(_AT_LEAST_SECONDS, _TIMES_LONGER * whole['seconds'])
      for fault in chosen:
        answer = ask(process, path, mutated(source, fault), GUARDS[module], longest)
        keep(module, fault, answer)
  timer.cancel()


@contextlib.contextmanager
def worker(copy: Path):
  """A process that runs tests in a copy."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3',
                 'PYTHONDONTWRITEBYTECODE': '1', 'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.compiled'),
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1'}
  with subprocess.Popen([sys.executable, '-m', 'tests.mutation.worker'], cwd=copy, env=environment, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
    yield process
    process.stdin.close()


def ask(process: subprocess.Popen, path: str, text: str, tests: Sequence[str], seconds: float
        ) -> dict[str, Any]:
  """Has the tests run with this text of the file."""
  job = {'file': path, 'text': text, 'tests': list(tests), 'seconds': seconds}
  process.stdin.write(json.dumps(job) + '\n')
  process.stdin.flush()
  return json.loads(process.stdout.readline())


def keep(module: str, fault: Fault, answer: dict[str, Any]) -> None:
  """Adds a line of a fault, and says it."""
  outcome = 'survived' if answer['code'] == 0 else 'killed'
  line = {'module': module, 'version': version(module), 'line': fault.line, 'operator': fault.operator,
          'occurrence': fault.occurrence, 'before': fault.before, 'after': fault.after, 'outcome': outcome,
          'seconds': round(answer['seconds'], 1)}
  with RESULTS.open('a') as file:
    file.write(json.dumps(line, ensure_ascii=False) + '\n')
  print(f'{outcome:8}  {module}:{fault.line}  {fault.after}', flush=True)


if __name__ == '__main__':
  main()
