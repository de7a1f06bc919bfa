"""Writes the table and the curves of the photos presets of all methods.

  python -m experiments.photos runs/photos

Reads config.json, metrics.jsonl and summary.json of each run in that folder, and writes results.md and
curves.png beside this file. README.md here has the commands of the runs.
"""
import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from benchmarks.hardware import cpu_name

HERE = Path(__file__).parent
COLUMNS = (('knn_top1', 'kNN'), ('linear_top1', 'linear'))


def read(run: Path) -> dict[str, Any]:
  """What a run left: its summary, versions and kNN accuracy by epoch."""
  config, summary = (json.loads((run / name).read_text()) for name in ('config.json', 'summary.json'))
  reports = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  return {'name': run.name, 'summary': summary, 'versions': config['versions'],
          'knn': [(report['epoch'], report['knn_top1']) for report in reports if 'knn_top1' in report]}


def table(runs: list[dict[str, Any]]) -> str:
  """The table in Markdown, the best kNN accuracy first."""
  versions, pixels = runs[0]['versions'], runs[0]['summary']['pixels']
  lines = [f'Measured on {cpu_name()} (jax {versions["jax"]}, device: {versions["device"]}) by '
           '`python -m experiments.photos`.', '',
           f'Raw pixels: kNN {pixels["knn_top1"]:.1%}, linear {pixels["linear_top1"]:.1%}.',
           '', '| config | kNN | linear | kNN, network at random | linear, at random |',
           '| --- | ---: | ---: | ---: | ---: |']
  for run in sorted(runs, key=lambda run: -run['summary']['knn_top1']):
    summary = run['summary']
    cells = [f'{of[name]:.1%}' for of in (summary, summary['random_init']) for name, _ in COLUMNS]
    lines.append(f'| {run["name"]} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def draw(runs: list[dict[str, Any]], path: Path) -> None:
  """kNN accuracy over the epochs, one panel a method, with the network at random as a line."""
  matplotlib.use('Agg')
  columns = 5
  rows = -(-len(runs) // columns)
  figure, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 1.9 * rows), sharex=True, sharey=True,
                              layout='constrained', squeeze=False)
  for axis, run in zip(axes.flat, runs):
    random = run['summary']['random_init']['knn_top1']
    axis.plot(*zip((0, random), *run['knn']), marker='o', markersize=3, color='tab:blue')
    axis.axhline(random, color='tab:gray', linestyle='--', linewidth=1)
    axis.set_title(run['name'], fontsize=9)
    axis.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axis.grid(alpha=0.3)
  for axis in list(axes.flat)[len(runs):]:
    axis.set_visible(False)
  figure.supxlabel('epoch', fontsize=9)
  figure.supylabel('kNN top-1 (k = 20); dashed: the network at random', fontsize=9)
  figure.savefig(path, dpi=110)
  plt.close(figure)


def main() -> None:
  """Writes results.md and curves.png."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('runs', type=Path, help='the folder that holds the runs')
  runs = [read(path.parent) for path in sorted(parser.parse_args().runs.glob('*/summary.json'))]
  if not runs:
    raise SystemExit('There is no finished run: experiments/photos/README.md has the commands.')
  (HERE / 'results.md').write_text(table(runs))
  draw(runs, HERE / 'curves.png')
  print(table(runs))


if __name__ == '__main__':
  main()
