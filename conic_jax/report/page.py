"""The page: self-contained HTML that opens offline and can be sent as one file."""
import base64
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from conic_jax.export.targets import TARGETS
from conic_jax.report import curves
from conic_jax.report.formats import is_share, words, written
from conic_jax.report.read_run import Run
from conic_jax.run.verdict import judge

# Nothing is loaded or sent; style and script are inline.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_PAGE = '''\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{facts}
{verdict}</header>
<main>
{sections}
</main>
<script>
{script}</script>
</body>
</html>
'''
# Main figure of an evaluation, by the end of its name.
_MAIN_FIGURE = re.compile(r'(^|_)(top1|top5|map|miou)$')
_BASELINES = {'random_init': 'Random network', 'pixels': 'Raw pixels'}
_WEIGHTS = {'baseline_weights': 'Published weights'}
_EVALUATIONS = {'summary': 'After pretraining', 'knn': 'Nearest neighbours', 'linear': 'Linear classifier',
                'semi': 'Semi-supervised', 'finetune': 'Fine-tuning', 'svm': 'Linear SVMs',
                'segment': 'Segmentation'}
_CAPTIONS = {
  'features': 'Features of images in two dimensions.',
  'neighbours': 'Images, and the training images whose features are nearest.',
  'confusion': 'Confusion: true classes in rows, predicted ones in columns.',
  'predictions': 'Images, their masks, and the predicted masks.',
  'activations': 'Mean activation of the last stage.',
  'curves': 'Curves of the pretraining.'}
# Evaluations of the encoder: config, extra flags, and what it measures.
_PROTOCOLS = (
  ('knn.py', '', 'nearest neighbours'), ('linear.py', '', 'a linear classifier'),
  ('semi.py:folder_1pct', ' --config.data.dir=IMAGES', 'fine-tuning with few labels'),
  ('finetune.py:folder', ' --config.data.dir=IMAGES', 'fine-tuning with all labels'),
  ('svm.py:voc07', '', 'linear SVMs for several labels an image'),
  ('segment.py:folder', ' --config.data.dir=IMAGES', 'semantic segmentation'))


def page(run: Run) -> str:
  """The HTML of a run's page."""
  sections = {
    'Figures': _headline(run.evaluations), 'Curves': _curves(run),
    'Evaluations': _evaluations(run.evaluations), 'Pictures': _pictures(run),
    'Settings': _settings(run.settings), 'Commands': _commands(run.targets)}
  facts = ''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>'
                  for name, value in run.facts.items())
  return _PAGE.format(
    policy=_POLICY, title=escape(run.title), facts=f'<dl class="facts">{facts}</dl>',
    verdict=_verdict(run),
    style=_file('page.css'), script=_file('page.js'),
    sections='\n'.join(f'<section id="{name.lower()}">\n<h2>{name}</h2>\n{content}\n</section>'
                       for name, content in sections.items() if content))


def _verdict(run: Run) -> str:
  """The verdict on the run, with its evidence; '' if the run was not probed."""
  verdict = judge(run.reports, run.settings)
  if verdict is None:
    return ''
  return f'<p class="verdict"><b>{escape(verdict.word.capitalize())}.</b> {escape(verdict.sentence)}</p>\n'


def _file(name: str) -> str:
  return resources.files('conic_jax.report').joinpath(name).read_text(encoding='utf-8')


# ---- Figures --------------------------------------------------------------------------------------


def _headline(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
  """The main figure of every evaluation, next to the baselines.

  Figures of the summary that repeat 'knn' or 'linear', which use the run's own data, are left out there, and
  its baselines are shown next to those; presets, such as 'knn_cifar10', may use other data.
  """
  rows, summary = [], evaluations.get('summary', {})
  repeated = {(file, name) for file in ('knn', 'linear') for name, value in evaluations.get(file, {}).items()
              if summary.get(name) == value}
  columns = _BASELINES | {name: title for name, title in _WEIGHTS.items() if name in summary}
  left_out = {('summary', name) for _, name in repeated}
  for file, figures in evaluations.items():
    for name, value in figures.items():
      if _MAIN_FIGURE.search(name) and is_share((name,), value) and (file, name) not in left_out:
        measured = summary if (file, name) in repeated else figures
        bars = [_bar(name, (measured.get(baseline) or {}).get(name)) for baseline in columns]
        rows.append(f'<tr><th scope="row">{escape(words(name))} <small>{escape(_title(file))}</small></th>'
                    f'{_bar(name, value)}{"".join(bars)}</tr>')
  if not rows:
    return '<p>Nothing has been measured yet: see the commands below.</p>'
  return _table('Main figures, with baselines where they were measured',
                ('', 'This encoder', *columns.values()), rows, 'headline')


def _bar(name: str, value: float | None) -> str:
  if value is None:
    return '<td class="none">–</td>'
  return f'<td style="--share:{value:.4f}">{_data((name,), value)}</td>'


def _evaluations(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
  """Every figure of every evaluation."""
  cards = [f'<article><h3>{escape(_title(file))} <code>{escape(file)}.json</code></h3>'
           + _figures(f'Figures of {file}', figures) + '</article>' for file, figures in evaluations.items()]
  return f'<div class="cards">{"".join(cards)}</div>' if cards else ''


def _figures(caption: str, figures: Mapping[str, Any], above: tuple[str, ...] = ()) -> str:
  """A table of figures with foldable groups; names inside are unchanged, as many are classes or rates."""
  rows = []
  for name, value in figures.items():
    shown = escape(name if above else words(name))
    if isinstance(value, Mapping):
      inner = _figures(f'{caption}, {name}', value, (*above, name))
      rows.append(f'<tr><td colspan="2">{_folded(shown, len(value), inner)}</td></tr>' if value else '')
    else:
      rows.append(f'<tr><th scope="row">{shown}</th><td>{_data((*above, name), value)}</td></tr>')
  return _table(caption, (), rows, 'figures')


def _data(path: tuple[str, ...], value: Any) -> str:
  """A figure, with all its digits for machines and in the tooltip."""
  text = escape(written(path, value))
  if type(value) in (int, float):
    return f'<data value="{value!r}" title="{value!r}">{text}</data>'
  return text


def _folded(title: str, count: int, content: str) -> str:
  return f'<details><summary>{title} <small>{count}</small></summary>{content}</details>'


def _title(file: str) -> str:
  """Title of an evaluation, from its file name: 'finetune_cifar10' is 'Fine-tuning: cifar10'."""
  kind, _, rest = file.partition('_')
  if kind not in _EVALUATIONS:
    return file
  return f'{_EVALUATIONS[kind]}: {rest}' if rest else _EVALUATIONS[kind]


def _table(caption: str, columns: Iterable[str], rows: Iterable[str], kind: str) -> str:
  head = ''.join(f'<th scope="col">{escape(column)}</th>' if column else '<td></td>' for column in columns)
  head = f'<thead><tr>{head}</tr></thead>' if head else ''
  return (f'<table class="{kind}"><caption>{escape(caption)}</caption>{head}<tbody>{"".join(rows)}</tbody>'
          '</table>')


# ---- Curves and pictures --------------------------------------------------------------------------


def _curves(run: Run) -> str:
  drawn = [curves.figure(title, series) for title, series in curves.panels(run.reports)]
  if not drawn:
    return '<p>No report yet.</p>'
  return f'<div class="panels">{"".join(drawn)}</div>'


def _pictures(run: Run) -> str:
  """The pictures of the run; the curves picture only if no curves are drawn above."""
  shown = [path for path in run.pictures if path.stem != 'curves' or not run.reports]
  drawn = ''.join(_picture(path) for path in shown)
  return f'<div class="pictures">{drawn}</div>' if drawn else ''


def _picture(path: Path) -> str:
  evaluation, _, kind = path.stem.rpartition('_')
  caption = _CAPTIONS.get(kind, '')
  if evaluation and caption:
    caption = f'{_title(evaluation)}. {caption}'
  try:
    encoded = base64.b64encode(path.read_bytes()).decode()
  except OSError:
    return ''  # What cannot be read is left out: the page holds more than pictures.
  return (f'<figure class="picture"><img src="data:image/png;base64,{encoded}" '
          f'alt="{escape(caption or words(path.stem))}">'
          f'<figcaption>{escape(caption)} <code>figures/{escape(path.name)}</code></figcaption></figure>')


# ---- Settings and commands ------------------------------------------------------------------------


def _settings(settings: Mapping[str, Any]) -> str:
  """The settings, one folded table per group; those without a group come first, the recipe's reasons last."""
  if 'recipe' in settings:
    settings = {**settings, 'recipe': dict(settings['recipe']['reasons'])}
  groups = {'general': {name: value for name, value in settings.items() if not isinstance(value, Mapping)},
            **{name: value for name, value in settings.items() if isinstance(value, Mapping)}}
  folded = [_folded(escape(name), len(values),
                    _table(f'Settings of {name}', (), _setting_rows(values), 'figures'))
            for name, values in groups.items() if values]
  return f'<div class="cards">{"".join(folded)}</div>'


def _setting_rows(values: Mapping[str, Any], above: str = '') -> list[str]:
  rows = []
  for name, value in values.items():
    if isinstance(value, Mapping):
      rows += _setting_rows(value, f'{above}{name}.')
    else:
      rows.append(f'<tr><th scope="row"><code>{escape(above + name)}</code></th>'
                  f'<td>{escape(_setting(value))}</td></tr>')
  return rows


def _setting(value: Any) -> str:
  """A setting as given on the command line, with all digits."""
  if isinstance(value, list):
    return f'({", ".join(map(str, value))})'
  return repr(value) if value == '' else str(value)


def _commands(targets: Iterable[str]) -> str:
  evaluate = [f'python -m conic_jax.main --config=configs/{config} --config.encoder=RUN{flags}  # {what}'
              for config, flags, what in _PROTOCOLS]
  export = [f'python -m conic_jax.export RUN --to={target} --out=encoder_{target}{TARGETS[target].suffix}'
            for target in targets]
  use = ['python -m conic_jax.embed RUN FOLDER --out=features.parquet',
         'python -m conic_jax.activations RUN random --images=FOLDER --out=RUN/figures/activations.png',
         'python -m conic_jax.report RUN']
  blocks = {'Evaluate': evaluate, 'Export': export, 'Use and look': use}
  return ('<p><code>RUN</code> is the folder of this run.</p>'
          + ''.join(f'<h3>{name}</h3><pre><code>{escape(chr(10).join(lines))}</code></pre>'
                    for name, lines in blocks.items()))
