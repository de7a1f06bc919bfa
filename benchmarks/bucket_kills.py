"""Kills of runs in a bucket at random moments: does the same command, on a new disk, go on to the bit?

  python -m benchmarks.bucket_kills --kills 20

A server of Google's buckets runs on this machine (fake-gcs-server). Tiny runs of several methods keep their
run there; each is killed (SIGKILL) at random moments, its disk is emptied, and the same command is started
again, until it ends. It must end in the losses and weights of a run in a folder that nothing happened to.
Writes benchmarks/results/bucket_kills.md.
"""
import argparse
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.hardware import hardware
from benchmarks.soak_run import STEPS, Command, draw_images, ended, reports, undisturbed, weights
from conic_jax.run.copies import fetched
from tests.bucket_servers import google

RESULTS = Path(__file__).parent / 'results' / 'bucket_kills.md'
METHODS = ('conic', 'conic_s, rows in memory', 'conic_s, rows on disk', 'one_million', 'moco')
# Steps by which a start must surpass the one before until it is killed, at most; none is killed after _LAST.
_STEPS, _LAST = 20, STEPS - 30


def killed(root: Path, method: str, kills: int, rng: random.Random) -> list[int]:
  """Kills a run so many times and lets it end; the last steps that it had reported before each."""
  url = f'gs://bucket/{method.replace(", ", "-").replace(" ", "-")}'
  command, steps = Command(root, method, Path(), changes=(('run', url), ('checkpoint.every_epochs', 0.5))), []
  for _ in range(kills):
    (process,) = command.start()
    step = min((steps or [0])[-1] + rng.randint(0, _STEPS), _LAST)
    while process.poll() is None and _reported(root) < step:
      time.sleep(rng.uniform(0, 0.1))
    if process.poll() is not None:
      raise SystemExit(f'{method} ended before it could be killed: {ended(process).told}')
    process.kill()
    ended(process)
    steps.append(_reported(root))
    shutil.rmtree(root / 'cache', ignore_errors=True)
  (process,) = command.start()
  outcome = ended(process)
  if outcome.code:
    raise SystemExit(f'{method} did not end: {outcome.told}')
  shutil.rmtree(root / 'cache', ignore_errors=True)
  run, expected = fetched(url), undisturbed(root, method, 1, 2)
  if reports(run) != reports(expected) or weights(run) != weights(expected):
    raise SystemExit(f'{method} ended in other losses or weights than an undisturbed run.')
  return steps


def _reported(root: Path) -> int:
  """The last step that the run has reported in its working copy, 0 for none."""
  copies = (root / 'cache').glob('conic_jax/buckets/*/metrics.jsonl')
  return max((step for path in copies for step in reports(path.parent)), default=0)


def main() -> None:
  """Kills, prints and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  rng, rows = random.Random(args.seed), []
  with tempfile.TemporaryDirectory() as name:
    root = Path(name)
    draw_images(root)
    with google(root) as (_, known):
      os.environ.update(known | {'XDG_CACHE_HOME': str(root / 'cache')})
      for index, method in enumerate(METHODS):
        share = (args.kills + index) // len(METHODS)
        rows.append((method, killed(root, method, share, rng)))
        print(*rows[-1], flush=True)
  total = sum(len(steps) for _, steps in rows)
  RESULTS.write_text('\n'.join([
    '# Runs in a bucket, killed at random', '',
    f'`python -m benchmarks.bucket_kills --kills {args.kills}`', '',
    hardware(), '', f'{total} kills, each with the loss of the local disk. All runs ended in the losses and '
    'weights, to the bit, of runs in a folder that nothing happened to.', '',
    '| method | kills | last steps reported before them |', '| --- | ---: | --- |',
    *(f'| {method} | {len(steps)} | {", ".join(map(str, steps))} |' for method, steps in rows)]) + '\n')


if __name__ == '__main__':
  main()
