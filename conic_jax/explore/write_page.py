"""The folder of the page: one HTML file, sheets of thumbnails, and lists as CSV."""
import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from conic_jax.explore.collection import Collection

# Nothing is loaded from elsewhere; the sheets lie beside the page.
_POLICY = ("default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
           "script-src 'unsafe-inline'")
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
<main>
<canvas id="map" tabindex="0" aria-label="Map of all images"></canvas>
<p id="hint">Scroll to zoom, drag to move, click an image.</p>
<div id="tip" hidden></div>
</main>
<aside>
<h1>{title}</h1>
<p class="facts">{facts}</p>
<label>Find <input id="search" type="search" placeholder="part of a path"></label>
<label>Colour <select id="colour"></select></label>
<div id="legend"></div>
<section id="chosen" hidden></section>
<nav id="tabs"></nav>
<section id="list"></section>
</aside>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
'''
_SIDE = 32                      # tiles per side of a sheet
_DIGITS = 4095                  # points are whole numbers up to this
_MOST_CATEGORIES = 2000         # of a column that colours
_LISTED = 300                   # outliers on the page; the CSV has all images


@dataclasses.dataclass(frozen=True)
class Findings:
  """What is known of the images of a collection.

  Attributes:
    points: the map, [n, 2].
    how: what the points are, a phrase.
    near: indices of neighbours, [n, k].
    similarities: of the neighbours, [n, k].
    clusters: cluster of each image, [n].
    medoids: image of each cluster, [c].
    outlyingness: [n].
    pairs: copies, [p, 2].
    alike: how alike they are, [p].
    columns: values of a table to colour by, n each, by name.
  """
  points: np.ndarray
  how: str
  near: np.ndarray
  similarities: np.ndarray
  clusters: np.ndarray
  medoids: np.ndarray
  outlyingness: np.ndarray
  pairs: np.ndarray
  alike: np.ndarray
  columns: Mapping[str, Sequence[str]]


def tile_size(images: int) -> int:
  """Pixels per side of a thumbnail on the sheets, a multiple of JPEG's blocks: fewer for more images."""
  return 64 if images <= 4000 else 48 if images <= 12_000 else 32


def write(folder: Path, title: str, collection: Collection, found: Findings, tiles: np.ndarray) -> None:
  """Writes the page and what lies beside it into a folder that exists.

  Args:
    folder: the folder.
    title: of the page.
    collection: the images.
    found: what is known of them.
    tiles: their thumbnails, uint8 [n, s, s, 3].
  """
  sheets = _write_sheets(folder, tiles)
  leaks = [row for row, (i, j) in enumerate(found.pairs) if collection.splits[i] != collection.splits[j]]
  outliers = np.argsort(-found.outlyingness, kind='stable')
  _write_lists(folder, collection, found, outliers, leaks)
  data = {
    'paths': collection.paths, 'points': _whole(found.points).ravel().tolist(),
    'near': found.near.ravel().tolist(), 'similarities': _rounded(found.similarities.ravel()),
    'medoids': found.medoids.tolist(), 'tile': tiles.shape[1], 'sheets': sheets, 'side': _SIDE,
    'outliers': outliers[:_LISTED].tolist(),
    'outlyingness': _rounded(found.outlyingness), 'pairs': found.pairs.tolist(),
    'alike': _rounded(found.alike), 'leaks': leaks, 'columns': _columns(collection, found)}
  text = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')
  style, script = (resources.files('conic_jax.explore').joinpath(name).read_text(encoding='utf-8')
                   for name in ('explore.css', 'explore.js'))
  page = _PAGE.format(policy=_POLICY, title=escape(title), facts=escape(_facts(collection, found)), data=text,
                      style=style, script=script)
  (folder / 'index.html').write_text(page, encoding='utf-8', errors='replace')


def _facts(collection: Collection, found: Findings) -> str:
  count = len(collection.paths)
  shown = f'{count:,} of {collection.total:,} images, drawn by chance' if count < collection.total \
    else f'{count:,} images'
  return f'{shown}. The map is {found.how}.'


def _columns(collection: Collection, found: Findings) -> list[dict[str, Any]]:
  """What the points can be coloured by: names with a code for each image, or numbers."""
  folders = [path.rpartition('/')[0] for path in collection.paths]
  named = [f'{number} · {Path(collection.paths[medoid]).name}'
           for number, medoid in enumerate(found.medoids, 1)]
  columns = []
  for name, values in (('class', collection.classes), ('split', collection.splits), ('folder', folders)):
    if 1 < len(set(values)) <= _MOST_CATEGORIES:
      columns.append(_categories(name, values, sorted(set(values))))
  columns.append({'name': 'cluster', 'names': named, 'codes': found.clusters.tolist()})
  columns.append({'name': 'distance from neighbours', 'numbers': _rounded(found.outlyingness)})
  for name, values in found.columns.items():
    numbers = _numbers(values)
    if numbers is not None:
      columns.append({'name': name, 'numbers': numbers})
    elif len(set(values)) <= _MOST_CATEGORIES:
      columns.append(_categories(name, values, sorted(set(values))))
  return columns


def _categories(name: str, values: Sequence[str], names: list[str]) -> dict[str, Any]:
  codes = {value: code for code, value in enumerate(names)}
  return {'name': name, 'names': names, 'codes': [codes[value] for value in values]}


def _numbers(values: Sequence[str]) -> list[float | None] | None:
  """The values as numbers, None for an empty one; None if some are none or all are empty."""
  try:
    numbers = [float(value) if value else None for value in values]
  except ValueError:
    return None
  finite = [number if number is not None and math.isfinite(number) else None for number in numbers]
  return finite if any(number is not None for number in finite) else None


def _whole(points: np.ndarray) -> np.ndarray:
  """The points as whole numbers of 0 … 4095, both axes at one scale."""
  low = points.min(axis=0)
  extent = max(float((points.max(axis=0) - low).max()), 1e-12)
  return np.rint((points - low) / extent * _DIGITS).astype(int)


def _rounded(values: np.ndarray) -> list[float]:
  return np.round(values.astype(np.float64), 4).tolist()


def _write_sheets(folder: Path, tiles: np.ndarray) -> list[str]:
  """JPEGs of 32 × 32 tiles; gives their names."""
  names, size = [], tiles.shape[1]
  for start in range(0, len(tiles), _SIDE * _SIDE):
    part = tiles[start:start + _SIDE * _SIDE]
    sheet = np.zeros((-(-len(part) // _SIDE) * _SIDE, size, size, 3), np.uint8)
    sheet[:len(part)] = part
    rows = len(sheet) // _SIDE
    whole = sheet.reshape(rows, _SIDE, size, size, 3).swapaxes(1, 2).reshape(rows * size, _SIDE * size, 3)
    names.append(f'sheet{len(names)}.jpg')
    Image.fromarray(whole).save(folder / names[-1], quality=85, subsampling=0)
  return names


def _write_lists(folder: Path, collection: Collection, found: Findings, outliers: np.ndarray,
                 leaks: Sequence[int]) -> None:
  """images.csv, outliers.csv, copies.csv and, of several splits, leaks.csv."""
  paths, splits = collection.paths, collection.splits
  rows = [(path, split, kind, found.clusters[i] + 1, f'{found.outlyingness[i]:.4f}')
          for i, (path, split, kind) in enumerate(zip(paths, splits, collection.classes, strict=True))]
  header = ('path', 'split', 'class', 'cluster', 'distance')
  _write_csv(folder / 'images.csv', header, rows)
  _write_csv(folder / 'outliers.csv', header, [rows[i] for i in outliers])
  pairs = [(paths[i], splits[i], paths[j], splits[j], f'{alike:.4f}')
           for (i, j), alike in zip(found.pairs, found.alike, strict=True)]
  header = ('path', 'split', 'copy', 'split of the copy', 'alike')
  _write_csv(folder / 'copies.csv', header, pairs)
  if len(set(splits)) > 1:
    _write_csv(folder / 'leaks.csv', header, [pairs[row] for row in leaks])


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
  with path.open('w', newline='', encoding='utf-8', errors='replace') as file:
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(rows)
