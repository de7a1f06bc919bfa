"""Judges the runs of experiments/verdict at half of their training and writes results.md.

  python -m experiments.run verdict --data=SETS     trains them, and keeps their reports
  python -m experiments.verdict                     judges the kept reports, in a second

What a run is comes from its held-out kNN accuracy, which the verdict never sees: it learned where that is
above the random network's by `CLEAR` standard errors of a difference, and stood still where its second half
changed it by no more.
"""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conic_jax.run import verdict
from experiments import jobs
from experiments.scales import SCALES
from experiments.verdict import EXPERIMENT, LEARNS, RUNS, STANDS

CLEAR, HELD_OUT = 2.0, 2000


def main() -> None:
  """Writes and shows the table."""
  lines = jobs.lines_of(EXPERIMENT, SCALES['cpu'], {}, jobs.read('cpu'))
  text = table({name: seeds[0]['figures'] for name, seeds in lines.items()})
  (Path(__file__).parent / 'results.md').write_text(text)
  print(text)


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
  """A row for each run, and the share of right verdicts.

  Args:
    runs: by name, the 'reports' of a run and the settings that it was 'judged_by'.
  """
  rows = ['Written by `python -m experiments.verdict`, on held-out training images.', '',
          '| run | images | kNN: random | pixels | at the end | verdict at half | at the end | right |',
          '| --- | --- | ---: | ---: | ---: | --- | --- | --- |']
  right = []
  for name, run in runs.items():
    _, data, _, words = RUNS[name]
    reports, epochs = run['reports'], run['judged_by']['epochs']
    half = [report for report in reports if report['epoch'] <= epochs / 2]
    first, last = (word(part, run['judged_by']) for part in (half, reports))
    random, pixels = (next(report[f'knn_top1_{what}'] for report in reports if f'knn_top1_{what}' in report)
                      for what in ('random', 'pixels'))
    knn = [report['knn_top1'] for report in reports if 'knn_top1' in report]
    right.append(first in words and is_known(words, random, knn))
    rows.append(f'| {name} | {data} | {random:.1%} | {pixels:.1%} | {knn[-1]:.1%} | {first} '
                f'| {last} | {"yes" if right[-1] else "no"} |')
  return '\n'.join([*rows, '', f'Right at half of the training: {sum(right)} of {len(right)}.']) + '\n'


def is_known(words: tuple[str, ...], random: float, knn: list[float]) -> bool:
  """Whether the held-out accuracies say that the run is what its words claim."""
  if words == (STANDS,):
    return abs(knn[-1] - knn[0]) <= CLEAR * error(knn[0], knn[-1])
  return (LEARNS in words) == (knn[-1] > random + CLEAR * error(random, knn[-1]))


def error(*shares: float) -> float:
  """The standard error of a difference of two accuracies on the held-out images."""
  return sum(share * (1 - share) / HELD_OUT for share in shares) ** 0.5


def word(reports: list[dict[str, Any]], settings: Mapping[str, Any]) -> str:
  """The verdict on these reports."""
  judged = verdict.judge(reports, settings)
  return judged.word if judged else ''


if __name__ == '__main__':
  main()
