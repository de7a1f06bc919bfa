"""Curves as SVG that work without scripts; page.js reads the values under the pointer from data-points."""
import dataclasses
import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from conic_jax.report.formats import minus, number, words
from conic_jax.visualise.style import GREY
from conic_jax.visualise.training_curves import BASELINES, LARGEST, OWN, PANELS, baselines

_MORE_PANELS = (
  ('Loss as a share of chance', 1, (('loss_share', '', GREY),)),
  ('Gradient norm', 1, (('grad_norm', '', GREY),)),
  ('Images a second', 1, (('images_per_second', '', GREY),)),
  ('Waiting for data (% of the time)', 100, (('waiting_for_data', '', GREY),)),
)
_MOST_POINTS = 400
_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 314, 8, 128
_DASHES = ('', '6 2', '2 2', '8 2 2 2')


@dataclasses.dataclass(frozen=True)
class Series:
  """One line of a panel: legend, colour, and points [n, 2], epoch and value.

  The points of a baseline all have the same value and no markers.
  """
  legend: str
  colour: str
  points: np.ndarray
  marked: bool = True


def panels(reports: Sequence[dict[str, Any]]) -> list[tuple[str, list[Series]]]:
  """The panels for which the reports have values: those of the curves picture, then all others by name."""
  layout = list(PANELS + _MORE_PANELS)
  # Only the kNN accuracy with the first k, 'knn_top1', is drawn.
  known = {'step', 'epoch'} | {name for _, _, series in layout for name, _, _ in series}
  names = {name for report in reports for name in report}
  beside = {f'{name}_{suffix}' for name in names | known for suffix, _, _ in BASELINES}
  others = sorted(name for name in names - known - beside if not name.startswith('knn_top1_k'))
  layout += [(words(name), 1, ((name, '', GREY),)) for name in others]
  drawn = []
  for title, factor, series in layout:
    lines = [Series(legend, colour, points) for name, legend, colour in series
             if len(points := _points(reports, name, factor))]
    if lines:
      drawn.append((title, _with_baselines(reports, factor, [name for name, _, _ in series], lines)))
  return drawn


def _with_baselines(reports, factor, names, lines):
  """The lines of a panel and, across its full width, the baselines of its figures."""
  epochs = np.unique(np.concatenate([line.points[:, 0] for line in lines]))
  level = lambda value: np.stack([epochs, np.full(len(epochs), factor * value)], axis=1)
  beside = [Series(legend, colour, level(value), marked=False) for name in names
            for legend, colour, value in baselines(reports, name)
            if any(name in report for report in reports)]
  if beside:
    lines = [dataclasses.replace(line, legend=line.legend or OWN) for line in lines]
  return lines + beside


def figure(title: str, series: Sequence[Series]) -> str:
  """A panel as HTML: title, legend, a field for the values under the pointer, and the drawing."""
  points = np.concatenate([line.points for line in series])
  ticks = {'x': nice_ticks(0, max(points[:, 0].max(), 1e-9), 5),
           'y': nice_ticks(points[:, 1].min(), points[:, 1].max(), 4)}
  last = '; '.join(f'{line.legend} {number(line.points[-1, 1])}'.strip() for line in series)
  spoken = '; '.join(
    f'{line.legend} from {number(line.points[0, 1])} to {number(line.points[-1, 1])}'.strip()
    for line in series)
  legend = ''.join(
    f'<span class="key" style="--c:{line.colour}"><svg width="18" height="8" aria-hidden="true">'
    f'<path d="M0 4H18" stroke-dasharray="{dash}"/></svg>{escape(line.legend)}</span>'
    for line, dash in zip(series, _DASHES * len(series), strict=False) if len(series) > 1)
  lines = ''.join(_line(line, dash, ticks) for line, dash in zip(series, _DASHES * len(series), strict=False))
  return (
    f'<figure class="panel"><figcaption><b>{escape(title)}</b> <output>last {escape(last)}</output>'
    f'<span class="legend">{legend}</span></figcaption>'
    f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
    f'aria-label="{escape(f"{title}, over {number(points[:, 0].max())} epochs: {spoken}")}">'
    f'{_axes(ticks)}{lines}<path class="pointer" d=""/></svg></figure>')


def nice_ticks(low: float, high: float, most: int) -> np.ndarray:
  """Multiples of 1, 2 or 5 · 10ᵏ that span low to high: the finest with at most `most` intervals."""
  if high - low < 1e-9 * max(abs(high), abs(low), 1e-12):
    margin = abs(high) / 10 or 1
    low, high = low - margin, high + margin
  exponent = math.floor(math.log10((high - low) / most))
  for step in (scale * 10.**power for power in (exponent, exponent + 1) for scale in (1, 2, 5)):
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if last - first <= most:
      return step * np.arange(first, last + 1)
  return np.array([low, high])


def _points(reports, name, factor):
  """Epochs and values of a figure that an axis can reach, [n, 2]; block means if there are many."""
  rows = [(report['epoch'], factor * report[name]) for report in reports
          if abs(report.get(name, math.nan)) < LARGEST]
  points = np.array(rows, np.float64).reshape(-1, 2)
  block = -(-len(points) // _MOST_POINTS)
  if block <= 1:
    return points
  starts = np.arange(0, len(points), block)
  counts = np.diff(np.append(starts, len(points)))
  return np.add.reduceat(points, starts) / counts[:, None]


def _place(points, ticks):
  """Positions of points in the drawing, [n, 2]."""
  x, y = ((points[:, i] - ticks[axis][0]) / (ticks[axis][-1] - ticks[axis][0]) for i, axis in enumerate('xy'))
  return np.stack([_LEFT + x * (_RIGHT - _LEFT), _BOTTOM - y * (_BOTTOM - _TOP)], axis=1)


def _axes(ticks):
  ends = {axis: [values[0], values[-1]] for axis, values in ticks.items()}
  parts = []
  for y in ticks['y']:
    _, height = _place(np.array([[0, y]]), ends)[0]
    parts.append(f'<path class="grid" d="M{_LEFT} {height:.1f}H{_RIGHT}"/><text x="{_LEFT - 5}" '
                 f'y="{height + 3:.1f}" text-anchor="end">{_tick(y, ticks["y"])}</text>')
  for x in ticks['x']:
    across, _ = _place(np.array([[x, ticks['y'][0]]]), ends)[0]
    parts.append(f'<path class="tick" d="M{across:.1f} {_BOTTOM}v3"/><text x="{across:.1f}" '
                 f'y="{_BOTTOM + 13}" text-anchor="middle">{_tick(x, ticks["x"])}</text>')
  parts.append(f'<text x="{_LEFT - 12}" y="{_BOTTOM + 13}" text-anchor="end">epoch</text>')
  return ''.join(parts)


def _tick(value, ticks):
  step = ticks[1] - ticks[0]
  if max(abs(ticks[0]), abs(ticks[-1])) >= 1e6 or step < 1e-4:
    return minus(f'{value:.3g}')
  decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
  return minus(f'{value + 0.:,.{decimals}f}')


def _line(series, dash, ticks):
  places = _place(series.points, ticks)
  path = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
  values = [[round(float(part), 1) for part in place] + [number(epoch), number(value)]
            for place, (epoch, value) in zip(places, series.points, strict=True)]
  dots = ''.join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>' for x, y in places
                 if series.marked and len(places) < 20)
  points = escape(json.dumps(values, separators=(',', ':')))
  return (f'<g style="--c:{series.colour}" data-name="{escape(series.legend)}" data-points="{points}">'
          f'<path class="line" stroke-dasharray="{dash}" d="{path}"/>{dots}</g>')
