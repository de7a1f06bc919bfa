"""Draws the curves of kept runs that docs/curves.md shows, from the lines in results.jsonl.

  python -m experiments.verdict.curves
"""
import json
import tempfile
from pathlib import Path

from conic_jax import visualise
from experiments import jobs
from experiments.scales import SCALES
from experiments.verdict import EXPERIMENT

FIGURES = Path(__file__).parents[2] / 'docs' / 'figures'
SHOWN = {'learning': 'the recipe', 'waiting': 'no rate', 'collapsing': 'consistency alone',
         'plateau': 'SimCLR, no rate after an eighth'}


def main() -> None:
  """Writes a picture for each of `SHOWN`."""
  lines = jobs.lines_of(EXPERIMENT, SCALES['cpu'], {}, jobs.read('cpu'))
  with tempfile.TemporaryDirectory() as folder:
    for name, variant in SHOWN.items():
      metrics = Path(folder, name)
      metrics.write_text('\n'.join(map(json.dumps, lines[variant][0]['figures']['reports'])))
      visualise.loss_curves(metrics, FIGURES / f'curves_{name}.png')
      print(FIGURES / f'curves_{name}.png')


if __name__ == '__main__':
  main()
