"""Puts faults into the package, one at a time, and counts those that the tests notice.

  pip install -e '.[mutation]'
  python -m tests.mutation                            a tenth of all faults of every module
  python -m tests.mutation losses --share=1           all faults of one
  python -m tests.mutation --share=0.3 --workers=2    goes on: what has a line is not done again

Each fault is tried on the tests that guards.py names for its module, in a copy of the checkout. A line is
kept of each in results.jsonl; those of a module begin anew when the module, the tests that guard it or what
these share changes. The shares are in docs/testing.md, which this writes.
"""
import argparse
import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.checkout import COMPILED, copy_checkout
from tests.mutation.faults import Fault, faults
from tests.mutation.guards import GUARDS, files_of
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
  args = parser.parse_args()
  if unknown := set(args.modules) - set(GUARDS):
    parser.error(f'no module {", ".join(sorted(unknown))}; available: {", ".join(GUARDS)}')
  work: queue.SimpleQueue[str] = queue.SimpleQueue()
  for module in args.modules or GUARDS:
    work.put(module)
  end = time.monotonic() + 60 * args.minutes
  with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as threads:
    tasks = [threads.submit(work_off, work, Path(folder) / str(index), args.share, end)
             for index in range(args.workers)]
    failures = [failure for task in tasks for failure in task.result()]
  write_page()
  if failures:
    raise SystemExit('\n'.join(failures))


def work_off(work: queue.SimpleQueue, copy: Path, share: float, end: float) -> list[str]:
  """Tries the faults of module after module in a copy of its own; what went wrong, a text for each module."""
  copy_checkout(copy)
  if COMPILED.is_dir():
    shutil.copytree(COMPILED, copy / COMPILED.name)
  failures = []
  with worker(copy) as process:
    while time.monotonic() < end:
      try:
        module = work.get_nowait()
      except queue.Empty:
        break
      try:
        try_module(process, copy, module, share)
      except RuntimeError as error:
        failures.append(f'{module}: {error}\n{(copy / "mutation.log").read_text()[-2000:]}')
  return failures


def try_module(process: subprocess.Popen, copy: Path, module: str, share: float) -> None:
  """Tries the faults of a module that have no line yet.

  Raises:
    RuntimeError: where its tests fail without any fault, or could not run.
  """
  path, tests, version = f'conic_jax/{module}.py', GUARDS[module], version_of(copy, module)
  done = {(line['operator'], line['occurrence']) for line in read_results()
          if (line['module'], line['version']) == (module, version)}
  left = [fault for fault in faults(copy, path, share) if (fault.operator, fault.occurrence) not in done]
  if not left:
    return
  whole = ask(process, path, (copy / path).read_text(), tests, 3600)
  if whole['code'] != 0:
    raise RuntimeError('its tests fail without any fault')
  longest = max(_AT_LEAST_SECONDS, _TIMES_LONGER * whole['seconds'])
  for fault in left:
    answer = ask(process, path, fault.text, tests, longest)
    keep(module, version, share, fault, answer)


def version_of(copy: Path, module: str) -> str:
  """What names a module together with the tests that guard it and what these share."""
  shared = [path for path in (copy / 'tests').rglob('*.py')
            if not path.name.startswith('test_') and path.parent.name not in ('mutation', 'mutants')]
  texts = [path.read_bytes() for path in (
    copy / f'conic_jax/{module}.py', *(copy / file for file in files_of(module)), *sorted(shared))]
  return hashlib.sha256(b'\0'.join(texts)).hexdigest()[:12]


@contextlib.contextmanager
def worker(copy: Path) -> Iterator[subprocess.Popen]:
  """A process that runs tests in a copy; hypothesis draws the same every time, as it does on CI."""
  environment = {**os.environ, 'CI': '1', 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3',
                 'PYTHONDONTWRITEBYTECODE': '1', 'JAX_COMPILATION_CACHE_DIR': str(copy / COMPILED.name),
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1'}
  with subprocess.Popen([sys.executable, '-m', 'tests.mutation.worker'], cwd=copy, env=environment, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
    yield process


def ask(process: subprocess.Popen, path: str, text: str, tests: Sequence[str], seconds: float
        ) -> dict[str, Any]:
  """Has the tests run with this text of the file."""
  assert process.stdin is not None
  assert process.stdout is not None
  job = {'file': path, 'text': text, 'tests': list(tests), 'seconds': seconds}
  process.stdin.write(json.dumps(job) + '\n')
  process.stdin.flush()
  if not (answer := process.stdout.readline()):
    raise RuntimeError('the process that runs the tests is gone')
  return json.loads(answer)


def outcome_of(code: int | None) -> str:
  """What became of a fault.

  Raises:
    RuntimeError: where the tests could not run.
  """
  if code is None:
    return 'timed out'
  if code == 0:
    return 'survived'
  # A test failed; the module could not be imported; the process crashed.
  if code in (1, 2) or code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGFPE):
    return 'killed'
  raise RuntimeError(f'pytest exited with {code}')


def keep(module: str, version: str, share: float, fault: Fault, answer: dict[str, Any]) -> None:
  """Adds a line of a fault, and says it."""
  outcome = outcome_of(answer['code'])
  line = {'module': module, 'version': version, 'share': share, 'line': fault.line,
          'operator': fault.operator, 'occurrence': fault.occurrence, 'before': fault.before,
          'after': fault.after, 'outcome': outcome, 'seconds': round(answer['seconds'], 1)}
  with RESULTS.open('a') as file:
    file.write(json.dumps(line, ensure_ascii=False) + '\n')
  print(f'{outcome:9}  {module}:{fault.line}  {fault.after}', flush=True)


if __name__ == '__main__':
  main()
