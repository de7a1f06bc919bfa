"""Pretrains on every set with the default flags, and keeps a line of each run: what the recipe is worth.

  python -m experiments.sets SETS …       writes the sets
  python -m experiments.recipe SETS              runs what has no line in results.jsonl yet
  python -m experiments.recipe.table             writes results.md and accuracy.png

A run is `python -m conic_jax.main --config=configs/METHOD.py:folder --config.data.dir=SETS/SET` with the seed
and the epochs of `EPOCHS`, on one core (where the system can pin it), with the same bits every time. It goes
on from its own checkpoint after a kill.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / 'results.jsonl'
# Of each set, so that a run of ConIC with its evaluation takes minutes of one core.
EPOCHS = {'photographs': 25, 'digits': 60, 'cifar3k': 20, 'cifar20k': 8, 'tiny5k': 12, 'imagenet1k': 40}
# A crop is looked for among the photographs: the nearest counts, and there are no classes to learn.
MORE_FLAGS = {'imagenet1k': ('--config.eval.k=(1,)', '--config.eval.linear=False')}
KEPT = ('knn_top1', 'linear_top1')


def main() -> None:
  """Does the runs that are missing, those of the first seed first."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('sets', type=Path, help='the folder that experiments.sets wrote')
  parser.add_argument('--runs', type=Path, default=Path('runs/recipe'))
  parser.add_argument('--methods', default='conic')
  parser.add_argument('--only', default=','.join(EPOCHS), help='the sets to run on')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--core', type=int, default=0, help='the core to run on')
  args = parser.parse_args()
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {args.core})
  for seed in range(args.seeds):
    for method in args.methods.split(','):
      for name in args.only.split(','):
        if not is_done(name, method, seed) and (args.sets / name).is_dir():
          run(args.sets, args.runs, name, method, seed)


def is_done(name: str, method: str, seed: int) -> bool:
  """Whether there is a line of the run."""
  lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
  done = [(each['set'], each['method'], each['seed']) for each in map(json.loads, lines)]
  return (name, method, seed) in done


def run(sets: Path, runs: Path, name: str, method: str, seed: int) -> None:
  """One run, in a process of its own, and its line."""
  folder = runs / f'{name}-{method}-{seed}'
  before = core_minutes()
  command = [sys.executable, '-m', 'conic_jax.main', f'--config=configs/{method}.py:folder',
             f'--config.data.dir={sets / name}', '--config.data.train=train', '--config.data.test=test',
             f'--config.run={folder}', f'--config.seed={seed}', f'--config.epochs={EPOCHS[name]}',
             *MORE_FLAGS.get(name, ())]
  if subprocess.run(command, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, check=False).returncode:
    print(f'{folder} did not end well: it is left out.', flush=True)
    return
  line = {'set': name, 'method': method, 'seed': seed, 'minutes': round(core_minutes() - before, 1),
          **describe(folder)}
  with RESULTS.open('a') as file:
    file.write(json.dumps(line) + '\n')


def core_minutes() -> float:
  """Minutes of a core that finished processes of ours have used."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return (used.ru_utime + used.ru_stime) / 60


def describe(folder: Path) -> dict[str, Any]:
  """What a run's files say: its figures and the baselines', its verdict, settings and versions."""
  config, summary = (json.loads((folder / name).read_text()) for name in ('config.json', 'summary.json'))
  kept = lambda figures: {name: figures[name] for name in KEPT if name in figures}
  return {'num_images': summary['num_images'], 'epochs': config['epochs'], 'batch_size': config['batch_size'],
          'pretrained': kept(summary), 'random_init': kept(summary['random_init']),
          'pixels': kept(summary['pixels']), 'verdict': summary.get('verdict', ''),
          'versions': config['versions']}


if __name__ == '__main__':
  main()
