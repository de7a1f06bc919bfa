"""Applies each patch of this folder to a copy, and shows the test that notices it.

  python -m tests.mutants                  all of them
  python -m tests.mutants final_random     one

A patch is a fault of the kind that tests are for: a line of the wiring that is wrong and lets everything run.
Its first line says what is wrong, its second which test must fail. The tests must pass without it.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.checkout import COMPILED, copy_checkout

HERE = Path(__file__).parent
_FAILED = 1  # What pytest exits with where tests ran and some failed.


class Mutant(NamedTuple):
  """A patch.

  Attributes:
    path: its file.
    fault: what is wrong, a sentence.
    test: the test that must notice, as pytest names it.
  """
  path: Path
  fault: str
  test: str


def read(path: Path) -> Mutant:
  """Reads a patch."""
  fault, test, *_ = path.read_text().splitlines()
  if not (match := re.fullmatch(r'Killed by: (\S+::\w+)', test)):
    raise ValueError(f'{path}: the second line must be "Killed by: " and a test.')
  return Mutant(path, fault, match[1])


def all_mutants() -> list[Mutant]:
  """The patches of this folder, by name."""
  return [read(path) for path in sorted(HERE.glob('*.patch'))]


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
  """What pytest exits with, and what it says."""
  command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', *tests]
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(COMPILED)}
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  return done.returncode, done.stdout + done.stderr


def main() -> None:
  """Tries the patches that are asked for; exits with 1 where a test notices nothing."""
  parser = argparse.ArgumentParser('python -m tests.mutants', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='*', help='patches, without .patch; all without')
  args = parser.parse_args()
  mutants = {mutant.path.stem: mutant for mutant in all_mutants()}
  if unknown := set(args.names) - set(mutants):
    parser.error(f'no patch {", ".join(sorted(unknown))}; available: {", ".join(mutants)}')
  chosen = [mutants[name] for name in args.names or mutants]
  with tempfile.TemporaryDirectory() as folder:
    copy_checkout(whole := Path(folder) / 'whole')
    code, said = run_tests(whole, sorted({mutant.test for mutant in chosen}))
    if code:
      raise SystemExit(f'{said}\nThe tests fail without any fault: mend them first.')
  survivors = [mutant.path.stem for mutant in chosen if not is_killed(mutant)]
  print(f'{len(chosen) - len(survivors)} of {len(chosen)} killed')
  if survivors:
    raise SystemExit(f'Survived: {", ".join(survivors)}')


def is_killed(mutant: Mutant) -> bool:
  """Whether the test of a patch fails with it."""
  with tempfile.TemporaryDirectory() as folder:
    copy_checkout(Path(folder))
    subprocess.run(['git', 'apply', str(mutant.path)], cwd=folder, check=True)
    begun = time.monotonic()
    code, said = run_tests(Path(folder), [mutant.test])
  killed = code == _FAILED and f'FAILED {mutant.test}' in said
  if code and not killed:
    raise SystemExit(f'{said}\nThe tests could not run with {mutant.path.stem}.')
  why = next((line for line in said.splitlines() if line.startswith('E  ')), '').removeprefix('E').strip()
  print(f'{"killed  " if killed else "SURVIVED"}  {mutant.path.stem}: {mutant.fault}\n'
        f'          {mutant.test}, {time.monotonic() - begun:.0f} s: {why or "passed"}', flush=True)
  return killed


if __name__ == '__main__':
  main()
