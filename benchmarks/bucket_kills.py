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
from benchmarks.soak_run import Command, draw_images, ended, reports, undisturbed, weights
from conic_jax.run.copies import fetched
from tests.bucket_servers import google

RESULTS = Path(__file__).parent / 'results' / 'bucket_kills.md'
METHODS = ('conic', 'conic_s, rows in memory', 'conic_s, rows on disk', 'one_million', 'moco')
# Seconds of a start in which it is killed, at most: about those that an undisturbed run takes.
_LIFE = 25.0


def killed(root: Path, method: str, kills: int, rng: random.Random) -> tuple[int, list[int]]:
  """Kills a run so many times and lets it end; the kills that found it alive, and the steps they were at."""
  url = f'gs://bucket/{method.replace(", ", "-").replace(" ", "-")}'
  command, steps = Command(root, method, Path(), changes=(('run', url), ('checkpoint.every_epochs', 0.5))), []
  while len(steps) < kills:
    (process,) = command.start()
    time.sleep(rng.uniform(0.3, 1.0) * _LIFE)
    if process.poll() is not None:
      ended(process)
      break
    process.kill()
    ended(process)
    steps.append(max(reports(next((root / 'cache').rglob('metrics.jsonl'), Path()).parent), default=0))
    shutil.rmtree(root / 'cache')
  (process,) = command.start()
  outcome = ended(process)
  if outcome.code:
    raise SystemExit(f'{method} did not end: {outcome.told}')
  shutil.rmtree(root / 'cache')
  run, expected = fetched(url), undisturbed(root, method, 1, 2)
  if reports(run) != reports(expected) or weights(run) != weights(expected):
    raise SystemExit(f'{method} ended in other losses or weights than an undisturbed run.')
  return len(steps), steps


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
        count, steps = killed(root, method, share, rng)
        rows.append((method, count, steps))
        print(method, count, steps, flush=True)
  total = sum(count for _, count, _ in rows)
  RESULTS.write_text('\n'.join([
    '# Runs in a bucket, killed at random', '',
    f'`python -m benchmarks.bucket_kills --kills {args.kills}`', '',
    hardware(), '', f'{total} kills, each with the loss of the local disk. All runs ended in the losses and '
    'weights, to the bit, of runs in a folder that nothing happened to.', '',
    '| method | kills | last steps reported before them |', '| --- | ---: | --- |',
    *(f'| {method} | {count} | {", ".join(map(str, steps))} |' for method, count, steps in rows)]) + '\n')


if __name__ == '__main__':
  main()
