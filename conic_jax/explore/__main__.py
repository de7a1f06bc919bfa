"""The command that lays out all images on a page, by what an encoder thinks of them.

  python -m conic_jax.explore                       the newest run in runs/, and its own images
  python -m conic_jax.explore runs/photos /my/images --table=labels.csv
  python -m conic_jax.explore runs/photos features.parquet --out=page

The page is a folder to open in a browser: a map of the images with their thumbnails, the neighbours of each,
clusters, outliers, copies, and images that are in two splits, with a CSV of each list. It needs no network
and sends nothing. The images are those of the run, a folder, or a file that embed wrote. A table colours
them: a CSV whose column 'path' has their paths as the page shows them.
"""
import argparse
import csv
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conic_jax import command_line
from conic_jax.buckets.bucket import is_url
from conic_jax.buckets.outputs import output
from conic_jax.errors import UserError
from conic_jax.evals import embeddings, encoders
from conic_jax.explore import collection as collections
from conic_jax.explore import relations, write_page
from conic_jax.explore.collection import Collection
from conic_jax.explore.write_page import Findings
from conic_jax.export.targets import whole
from conic_jax.terminal import print_line
from conic_jax.visualise import projection

_USAGE = ('python -m conic_jax.explore [RUN_OR_FILE] [FOLDER_OR_FEATURES] [--out=FOLDER] [--table=FILE.csv] '
          '[--points=50000] [--clusters=N] [--seed=0]')
_RUNS = Path('runs')
_NEIGHBOURS = 12
_LANDMARKS = 5000               # images that t-SNE places; the others follow their neighbours
_OURS = re.compile(r'index\.html|sheet\d+\.jpg|(images|outliers|copies|leaks)\.csv')


def explore(encoder: str, images: str | None = None, out: str | Path | None = None, *, points: int = 50_000,
            clusters: int | None = None, table: str | Path | None = None, seed: int = 0) -> Path | str:
  """Writes the page of some images, replacing an older one.

  Args:
    encoder: the folder of a run, or a file of weights; of this machine or in a bucket.
    images: a folder, or a file that embed wrote; None for those of the run.
    out: the folder to write, a path or a URL; by default explore/ in the run's, or beside the file.
    points: images on the page at most; of more a sample.
    clusters: number of clusters; by default √(n / 2), 40 at most.
    table: CSV of what else to colour by.
    seed: of the sample, the map and the clusters.

  Returns:
    The page, index.html in that folder.

  Raises:
    UserError: if there are no such images, or the page cannot be written.
  """
  out = out or _usual_out(encoder)
  if not is_url(out):
    _check_out(Path(out))
  columns = _read_table(Path(table)) if table else {}
  if images and embeddings.is_file(images):
    found = collections.of_file(Path(images), points, seed)
  else:
    opened = encoders.open_encoder(encoder)
    found = collections.of_folder(opened, images, points, seed) if images else \
      collections.of_run(opened, points, seed)
  tiles, greys = collections.pictures(found, write_page.tile_size(len(found.paths)))
  findings = _findings(found, greys, clusters, seed, _values(columns, found.paths))
  def write(folder: Path) -> None:
    folder.mkdir()
    write_page.write(folder, f'{Path(encoder).name}: {len(found.paths):,} images', found, findings, tiles)
  with output(out, '--out') as written:
    try:
      written.path.parent.mkdir(parents=True, exist_ok=True)
      if written.path.exists():
        shutil.rmtree(written.path)
      whole(written.path, write)
    except OSError as error:
      raise UserError(f'--out={out} cannot be written ({error}): give another --out.') from error
  return written.name(written.path / 'index.html')


def _findings(found: Collection, greys: np.ndarray, clusters: int | None, seed: int,
              columns: Mapping[str, list[str]]) -> Findings:
  count = len(found.paths)
  similarities, near = relations.neighbours(found.vectors, _NEIGHBOURS)
  labels, medoids = relations.clusters(found.vectors, clusters or relations.usual_count(count), seed)
  pairs, alike = relations.copies(near, greys)
  points, how = _map(found.vectors, seed)
  return Findings(points, how, near, similarities, labels, medoids, relations.outlyingness(similarities),
                  pairs, alike, columns)


def _map(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
  """The points of all images, and what they are."""
  landmarks = np.arange(len(vectors))
  if len(vectors) > _LANDMARKS:
    landmarks = np.sort(np.random.default_rng(seed).choice(len(vectors), _LANDMARKS, replace=False))
  made = projection.project(vectors[landmarks], seed)
  how = {'t-SNE': 't-SNE', 'One point': 'a single point, as all features are equal'}.get(
    made.method, 'of two principal components')
  if len(landmarks) == len(vectors):
    return made.points, f'{how} of their features'
  return (relations.placed(vectors, landmarks, made.points),
          f'{how} of {_LANDMARKS:,} of them; the others stand among those nearest to them')


def newest_run() -> str:
  """The run in runs/ that reported last.

  Raises:
    UserError: if there is none.
  """
  found = [path.parent for path in _RUNS.glob('*/config.json') if (path.parent / 'checkpoints').is_dir()]
  if not found:
    raise UserError(f'Which run? There is none in {_RUNS}/ here: give its folder, as in {_USAGE}.')
  def reported(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run / 'metrics.jsonl', run / 'config.json') if path.exists())
  return str(max(found, key=reported))


def _usual_out(encoder: str) -> str | Path:
  """Beside a file, in a run; what is in a bucket and has no ending is a run."""
  path = Path(encoder)
  if is_url(encoder):
    start, end = (encoder.rstrip('/'), '/explore') if not path.suffix else (
      encoder.removesuffix(path.suffix), '_explore')
    return start + end
  return path / 'explore' if path.is_dir() else path.with_name(f'{path.stem}_explore')


def _check_out(out: Path) -> None:
  """Raises a `UserError` if there is anything that is no older page."""
  if out.is_file() or (out.is_dir() and not all(_OURS.fullmatch(path.name) for path in out.iterdir())):
    raise UserError(f'{out} is there already and is no page of explore: give another --out.')


def _read_table(path: Path) -> dict[str, dict[str, str]]:
  """Columns by name, each by path.

  Raises:
    UserError: if the table cannot be read, or has no column 'path'.
  """
  try:
    with path.open(newline='', encoding='utf-8-sig') as file:
      rows = list(csv.DictReader(file))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f'--table={path} cannot be read ({error}): give a CSV in UTF-8.') from None
  names = list(rows[0]) if rows else []
  if 'path' not in names:
    raise UserError(f"--table={path} has no column 'path', which says whose a row is; it has "
                    f'{", ".join(names) or "none"}.')
  return {name: {row['path']: row[name] or '' for row in rows} for name in names if name and name != 'path'}


def _values(columns: Mapping[str, Mapping[str, str]], paths: list[str]) -> dict[str, list[str]]:
  """The columns' values for the images.

  Raises:
    UserError: if the table has none of them.
  """
  known = next(iter(columns.values()), {}).keys()
  if columns and not known & set(paths):
    raise UserError(f"--table has none of the images: its column 'path' has {next(iter(known), '')!r}, the "
                    f'images are named as {paths[0]!r}.')
  return {name: [values.get(path, '') for path in paths] for name, values in columns.items()}


def run(arguments: argparse.Namespace) -> None:
  """Writes the page that the arguments ask for, and says where it is."""
  encoder = arguments.encoder or newest_run()
  written = explore(encoder, arguments.images, arguments.out, points=arguments.points,
                    clusters=arguments.clusters, table=arguments.table, seed=arguments.seed)
  print_line(f'Open {written} in a browser.')


def _arguments() -> argparse.Namespace:
  parser = command_line.Parser(_USAGE, __doc__)
  parser.add_argument('encoder', metavar='RUN_OR_FILE', nargs='?',
                      help='folder of a run, or a file of weights; the newest run in runs/ by default')
  parser.add_argument('images', metavar='FOLDER_OR_FEATURES', nargs='?',
                      help='folder of images, or a file that embed wrote; those of the run by default')
  parser.add_argument('--out', metavar='FOLDER', type=command_line.path_or_url('--out'),
                      help="what to write; explore/ in the run's folder by default")
  parser.add_argument('--table', metavar='FILE', type=command_line.local_path('--table'),
                      help='a CSV with a column path, whose other columns colour the map')
  parser.add_argument('--points', metavar='N', type=command_line.whole_number, default=50_000,
                      help='images on the page at most, of more a sample (default: %(default)s)')
  parser.add_argument('--clusters', metavar='N', type=command_line.whole_number, help='number of clusters')
  parser.add_argument('--seed', metavar='N', type=int, default=0,
                      help='of the sample, the map and the clusters (default: %(default)s)')
  return parser.parse_args()


def command() -> None:
  """Runs the command and sets its exit code."""
  command_line.guarded(lambda: run(_arguments()))


if __name__ == '__main__':
  command()
