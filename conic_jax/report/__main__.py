"""The command that writes the page of a run, which needs no network and no other file to be read.

  python -m conic_jax.report runs/conic

It says what the run folder holds: a run that is under way has curves, settings and what was measured so far.
"""
import argparse
from pathlib import Path

from conic_jax import command_line
from conic_jax.buckets.bucket import is_url
from conic_jax.buckets.outputs import output
from conic_jax.errors import UserError
from conic_jax.export.targets import whole
from conic_jax.report.page import page
from conic_jax.report.read_run import read_run
from conic_jax.run.copies import fetched
from conic_jax.terminal import print_line

_USAGE = 'python -m conic_jax.report RUN [--out=RUN/report.html]'


def report(run: str | Path, out: str | Path | None = None) -> Path | str:
  """Writes the page of a run, replacing an older one.

  Args:
    run: its folder, of this machine or in a bucket.
    out: the page, a path or a URL; report.html in the run's folder by default.

  Returns:
    Where it is.

  Raises:
    UserError: if the folder is not a run, one of its files cannot be read, or the page cannot be written.
  """
  text = page(read_run(fetched(run, 'RUN')))
  out = out or (f"{str(run).rstrip('/')}/report.html" if is_url(run) else Path(run) / 'report.html')
  with output(out, '--out') as written:
    try:
      written.path.parent.mkdir(parents=True, exist_ok=True)
      whole(written.path, lambda path: path.write_text(text, encoding='utf-8', errors='replace'))
    except OSError as error:
      raise UserError(f'--out={out} cannot be written ({error}): give another --out.') from error
  return written.name(written.path)


def run(arguments: argparse.Namespace) -> None:
  """Writes the page that the arguments ask for.

  Args:
    arguments: from `_arguments`.

  Raises:
    UserError: as in `report`.
  """
  print_line(str(report(arguments.run, arguments.out)))


def _arguments() -> argparse.Namespace:
  parser = command_line.Parser(_USAGE, __doc__)
  parser.add_argument('run', metavar='RUN', type=command_line.path_or_url('RUN'), help='folder of the run')
  parser.add_argument('--out', metavar='FILE', type=command_line.path_or_url('--out'),
                      help='the page; report.html in the folder of the run by default')
  return parser.parse_args()


def command() -> None:
  """Runs the command and sets its exit code."""
  command_line.guarded(lambda: run(_arguments()))


if __name__ == '__main__':
  command()
