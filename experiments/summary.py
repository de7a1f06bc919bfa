"""Writes the page of every experiment from the lines of its runs, and experiments/README.md.

  python -m experiments.summary                 results of --scale=cpu
  python -m experiments.summary --scale=gpu     results of an accelerator's runs

Every number on these pages comes from here. A claim *holds* if all of its questions do, *does not hold here*
if the runs show the opposite for one of them, and is *not decided* otherwise; `experiments/statistics.py` has
the rule.
"""
import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import jobs, pictures, statistics
from experiments.jobs import HERE, Experiment, Scale
from experiments.scales import SCALES
from experiments.statistics import MEASURES, Answer, Figures
from experiments.tuning import tuned

# Methods with a softmax over all images.
ALL_CLASSES = ('conic', 'exemplar', 'one_million')
MARKS = '<!-- claims -->', '<!-- /claims -->'


def main() -> None:
  """Writes all pages."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--scale', choices=SCALES, default='cpu')
  args = parser.parse_args()
  write(jobs.load(jobs.all_names()), SCALES[args.scale])


def write(experiments: list[Experiment], scale: Scale, root: Path = HERE) -> None:
  """Writes each experiment's README.md and figure, and the table of all claims.

  Args:
    experiments: all experiments.
    scale: the scale of the runs.
    root: the folder that holds the experiments' folders.
  """
  results = jobs.read(scale.name, root)
  chosen = tuned(scale, results)
  rows = []
  for experiment in experiments:
    if experiment.own_page:
      continue
    lines = jobs.lines_of(experiment, scale, chosen, results)
    figures = {variant: {seed: line['figures'] for seed, line in seeds.items()}
               for variant, seeds in lines.items()}
    if experiment.pools:
      figures = pooled(results.values(), scale)
    answers, asides = ([question.answer(figures) for question in questions]
                       for questions in (experiment.questions, experiment.asides))
    folder = root / experiment.name
    folder.mkdir(exist_ok=True)
    picture = folder / ('figure.png' if scale.name == 'cpu' else f'figure_{scale.name}.png')
    pictures.draw(experiment, experiment.variants(scale), figures, picture)
    page = describe(experiment, scale, lines, figures, answers, asides, picture)
    (folder / ('README.md' if scale.name == 'cpu' else f'{scale.name}.md')).write_text(page)
    if experiment.questions:
      rows.append(row(experiment, answers if figures else []))
  index = root / 'README.md'
  if scale.name == 'cpu' and index.exists():
    head = ['| claim | source | here | verdict |', '| --- | --- | --- | --- |']
    index.write_text(between(index.read_text(), MARKS, '\n'.join([*head, *rows])))


def pooled(lines: Iterable[Mapping[str, Any]], scale: Scale) -> dict[str, dict[int, dict[str, Any]]]:
  """Figures of all runs on the scale's images, by what they compute and by seed.

  Instance accuracy is kept only if it is over all classes: a few classes are easier to tell apart.
  """
  found: dict[str, dict[int, dict[str, Any]]] = {}
  for line in lines:
    settings = line['settings']
    if line['config'] and all(settings.get(field) == scale.common.get(field)
                              for field in ('data.dir', 'data.test')):
      key = jobs.identity(scale.name, line['config'], settings, 0, line['after'])
      figures = dict(line['figures'])
      if line['config'] not in ALL_CLASSES or settings.get('classifier.drawn'):
        figures.pop('instance_top1', None)
      found.setdefault(key, {})[line['seed']] = figures
  return found


def answered(answers: Sequence[Answer]) -> str:
  """A table of questions and answers."""
  return '\n'.join(['| question | answer | difference, mean ± deviation |', '| --- | --- | --- |',
                    *(f'| {each.question} | {each.verdict} | {each.found} |' for each in answers)])


def describe(experiment: Experiment, scale: Scale, lines: Mapping[str, Mapping[int, Mapping[str, Any]]],
             figures: Figures, answers: list[Answer], asides: list[Answer], picture: Path) -> str:
  """The page of an experiment."""
  wanted = [*experiment.variants(scale)]
  runs = [line for seeds in lines.values() for line in seeds.values()]
  parts = [f'# {experiment.claim}', f'**Source:** {experiment.source}. {experiment.paper}']
  if answers:
    parts.append(f'**Here:** {statistics.overall(answers)}. {experiment.meaning}'.strip())
    parts.append(answered(answers))
  if asides:
    parts.append('Asked beside, and not counted:\n\n' + answered(asides))
  if runs:
    parts.append(table(experiment, wanted, figures))
  if picture.exists():
    parts.append(f'![{experiment.claim}]({picture.name})')
  flag = '' if scale.name == 'cpu' else f' --scale={scale.name}'
  parts.append(f'```\npython -m experiments.run {experiment.name} --data=SETS{flag}\n'
               f'python -m experiments.summary{flag}\n```')
  missing = len(wanted) * experiment.seeds - len(runs)
  if runs:
    parts.append(made(runs))
  if wanted and missing:
    parts.append(f'{missing} of {len(wanted) * experiment.seeds} runs are missing.')
  return '\n\n'.join(parts) + '\n'


def table(experiment: Experiment, names: list[str], figures: Figures) -> str:
  """A row for each variant: mean and standard deviation over its seeds."""
  rows = [f'| run | seeds | {" | ".join(MEASURES[name].title for name in experiment.measures)} |',
          f'| --- | ---: |{" ---: |" * len(experiment.measures)}']
  for name in names:
    if runs := figures.get(name):
      cells = [spread([run[measure] for run in runs.values() if measure in run], measure)
               for measure in experiment.measures]
      rows.append(f'| {name} | {len(runs)} | {" | ".join(cells)} |')
  return '\n'.join(rows)


def spread(values: list[float], measure: str) -> str:
  """Mean ± standard deviation; a single value alone; – for none."""
  if not values:
    return '–'
  scaled, digits = MEASURES[measure].factor * np.array(values), MEASURES[measure].digits
  deviation = f' ± {scaled.std(ddof=1):.{digits}f}' if len(scaled) > 1 else ''
  return f'{scaled.mean():.{digits}f}{deviation}'


def made(runs: list[Mapping[str, Any]]) -> str:
  """Hardware, dates and duration of the runs."""
  cpus = ', '.join(sorted({run['cpu'] for run in runs}))
  dates = sorted(run['date'] for run in runs)
  when = dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}'
  seconds = [run['core_seconds'] for run in runs if 'core_seconds' in run]
  lasting = f', {np.median(seconds) / 60:.1f} minutes of the core a run (median)' if seconds else ''
  found = sorted({run['versions']['jax'] for run in runs if 'versions' in run})
  jax = f', jax {", ".join(found)}' if found else ''
  many = f'{len(runs)} runs' if len(runs) > 1 else 'One run'
  return f'{many}, each on one core of {cpus}{jax}, {when}{lasting}.'


def row(experiment: Experiment, answers: list[Answer]) -> str:
  """A row of the table of claims."""
  found = '; '.join(f'{each.question}: {each.found}' for each in answers[:2])
  count = sum(answer.verdict == statistics.HOLDS for answer in answers)
  verdict = statistics.overall(answers) if answers else 'no runs yet'
  share = f' ({count} of {len(answers)} questions hold)' if answers and verdict != statistics.HOLDS else ''
  return (f'| [{experiment.claim}]({experiment.name}/README.md) | {experiment.source} | {found} '
          f'| **{verdict}**{share} |')


def between(page: str, marks: tuple[str, str], text: str) -> str:
  """The page with the text between its marks replaced."""
  before, rest = page.split(marks[0])
  return f'{before}{marks[0]}\n{text}\n{marks[1]}{rest.split(marks[1])[1]}'


if __name__ == '__main__':
  main()
