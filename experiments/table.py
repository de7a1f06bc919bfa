"""Writes the table of an experiment from its runs' files.

  python -m experiments.table experiments/conic_cifar10 runs/cifar10_tfds runs/cifar10_folder

Reads config.json, metrics.jsonl and summary.json of each run, and writes results.md and the curves of the
first run to the experiment's folder. README.md there has the claim and the commands.
"""
import argparse
import json
import shutil
from pathlib import Path

from benchmarks.hardware import cpu_name
from experiments.figures import read_reports


def describe(run: Path) -> dict[str, object]:
  """One row: images, steps, speed, and kNN accuracy over the epochs."""
  config, summary = (json.loads((run / name).read_text()) for name in ('config.json', 'summary.json'))
  reports = read_reports(run)
  knn = [(report['epoch'], report['knn_top1']) for report in reports if 'knn_top1' in report]
  speed = sorted(report['images_per_second'] for report in reports if 'images_per_second' in report)
  return {'run': run.name, 'data': config['data']['name'], 'images': summary['num_images'],
          'steps': summary['step'], 'images_per_second': speed[len(speed) // 2],
          'knn': ' → '.join(f'{accuracy:.1%}' for _, accuracy in knn),
          'epochs': ', '.join(f'{epoch:g}' for epoch, _ in knn), 'device': config['versions']['device'],
          'jax': config['versions']['jax']}


def main() -> None:
  """Writes results.md and curves.png."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('experiment', type=Path)
  parser.add_argument('runs', type=Path, nargs='+')
  args = parser.parse_args()
  rows = [describe(run) for run in args.runs]
  lines = [f'Measured on {cpu_name()} (jax {rows[0]["jax"]}, device: {rows[0]["device"]}) by '
           f'`python -m experiments.table`.', '',
           '| run | data | images (ids) | steps | images/s | kNN top-1 (k = 20) after the epochs | epochs |',
           '| --- | --- | ---: | ---: | ---: | --- | --- |']
  lines += ['| {run} | {data} | {images:,} | {steps:,} | {images_per_second:.0f} | {knn} | {epochs} |'
            .format(**row) for row in rows]
  (args.experiment / 'results.md').write_text('\n'.join(lines) + '\n')
  shutil.copy(args.runs[0] / 'figures' / 'curves.png', args.experiment / 'curves.png')
  print('\n'.join(lines))


if __name__ == '__main__':
  main()
