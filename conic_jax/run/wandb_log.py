"""Reports to Weights & Biases."""
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conic_jax.run.loggers import Say

# Seconds that the service has to answer at the start, and for what is left to send at the end.
_ANSWERING, _CLOSING = 10.0, 60.0


class Wandb:
  """A run of Weights & Biases with a run's config, reports and pictures.

  Their axis is the step of the report, so what a run that goes on reports again is at its place.
  """

  def __init__(self, run: Any):
    self._run = run
    run.define_metric('step', hidden=True)
    run.define_metric('*', step_metric='step')

  def report(self, report: Mapping[str, Any]) -> None:
    """As `Logger.report`."""
    self._run.log(dict(report))

  def conclude(self, summary: Mapping[str, Any], pictures: Sequence[Path]) -> None:
    """As `Logger.conclude`."""
    import wandb  # An optional extra.
    self._run.log({f'figures/{path.stem}': wandb.Image(str(path)) for path in pictures})
    self._run.summary.update(dict(summary))

  def close(self) -> None:
    """As `Logger.close`.

    Raises:
      TimeoutError: if not everything could be sent.
    """
    sender = threading.Thread(target=self._run.finish, name='wandb', daemon=True)
    sender.start()
    sender.join(_CLOSING)
    if sender.is_alive():
      raise TimeoutError(f'the service does not answer; wandb sync sends what is in {self._run.dir}')


def open_wandb(setting: str, folder: Path, description: Mapping[str, Any], identity: str, say: Say
               ) -> tuple[Wandb, str]:
  """Begins the run of a folder in a project, 'PROJECT' or 'TEAM/PROJECT', or goes on with it.

  Without a key or a network it is kept in the run's folder, as with WANDB_MODE=offline: wandb itself would
  try to log in for hours.
  """
  import wandb  # An optional extra, which takes a second to import.
  missing = ''
  if os.environ.get('WANDB_MODE', 'online') == 'online':
    server = str(wandb.api.settings('base_url'))
    missing = ('there is no key here (wandb login)' if not wandb.api.api_key
               else '' if answers(server) else f'{server} does not answer')
  if missing:
    say(f'Weights & Biases: {missing}, so the reports stay in {folder}/wandb, and wandb sync sends them.')
  team, _, project = setting.rpartition('/')
  run = wandb.init(
    project=project, entity=team or None, id=identity or None, resume='allow' if identity else None,
    name=folder.name, dir=folder, config=dict(description), mode='offline' if missing else None,
    settings=wandb.Settings(console='off', silent=True, disable_git=True, disable_code=True))
  return Wandb(run), run.id


def answers(url: str) -> bool:
  """Whether something listens at a URL; assumed where a proxy is between."""
  parts = urllib.parse.urlsplit(url)
  if parts.scheme in urllib.request.getproxies():
    return True
  port = parts.port or (443 if parts.scheme == 'https' else 80)
  try:
    with socket.create_connection((parts.hostname or '', port), timeout=_ANSWERING):
      return True
  except OSError:
    return False
