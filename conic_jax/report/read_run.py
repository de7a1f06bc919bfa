"""Reads a run folder for its page."""
import dataclasses
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from conic_jax import models
from conic_jax.errors import UserError
from conic_jax.export import card, targets
from conic_jax.run.run_config import read_config


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as shown on its page, without paths of the machine.

  Attributes:
    title: method, data and encoder.
    facts: one-line facts by name.
    evaluations: the figures of every evaluation, nested, by file name; 'summary' first.
    reports: the numbers in each line of metrics.jsonl, including 'step' and 'epoch'.
    pictures: the PNG files.
    settings: the resolved config.
    targets: the formats that the encoder can be exported to.
  """
  title: str
  facts: Mapping[str, str]
  evaluations: Mapping[str, Mapping[str, Any]]
  reports: list[dict[str, Any]]
  pictures: list[Path]
  settings: Mapping[str, Any]
  targets: list[str]


def read_run(folder: Path) -> Run:
  """Reads the folder of a finished or ongoing run.

  Raises:
    UserError: if the folder is not a run, or one of its files cannot be read.
  """
  config = read_config(folder)
  origin = card.of_run(folder, config)
  evaluations = {name: card.public(content) for name, content in card.read_results(folder).items()}
  reports = read_reports(folder / 'metrics.jsonl')
  network = models.build_encoder(types.SimpleNamespace(**config['encoder']), jnp.float32)
  data, encoder = origin.settings['data'], config['encoder']
  images = data['dir'] if data['name'] in ('folder', 'wds', 'parquet', 'list') else data['name']
  return Run(
    title=f'{config["method"]} · {images} · {encoder["name"]}',
    facts={**origin.facts,
           'encoder': f'{encoder["name"]}, {card.described(network)}, {network.num_features} features',
           'state': _state(evaluations.get('summary'), reports)},
    evaluations=dict(sorted(evaluations.items(), key=lambda item: (item[0] != 'summary', item[0]))),
    reports=reports,
    pictures=sorted((folder / 'figures').glob('*.png')),
    settings=origin.settings,
    targets=[target for target in targets.TARGETS if _expresses(target, network)])


def read_reports(path: Path) -> list[dict[str, Any]]:
  """The reports so far; the last line may be incomplete during a run or after a crash."""
  lines = path.read_text(errors='replace').splitlines() if path.is_file() else []
  reports = []
  for number, line in enumerate(lines, 1):
    try:
      reports.append(_report(line))
    except ValueError as error:
      if number < len(lines):
        raise UserError(f'{path} cannot be read in line {number} ({error}): delete that line.') from error
  return reports


def _report(line: str) -> dict[str, Any]:
  """The numbers of a line."""
  content = json.loads(line)
  if isinstance(content, dict):
    numbers = {name: value for name, value in content.items() if type(value) in (int, float)}
    if all(math.isfinite(numbers.get(name, math.nan)) for name in ('step', 'epoch')):
      return numbers
  raise ValueError('it lacks the numbers step and epoch')


def _state(summary: Mapping[str, Any] | None, reports: list[dict[str, Any]]) -> str:
  finished = None if summary is None else summary.get('step')
  last = f'last report at step {reports[-1]["step"]:,}, epoch {reports[-1]["epoch"]:g}' if reports else ''
  if summary is None:
    return f'unfinished, {last or "no report yet"}'
  if not isinstance(finished, int):
    return 'finished'
  if reports and reports[-1]['step'] > finished:
    return f'goes on after the {finished:,} steps of its summary, {last}'
  return f'finished after {finished:,} steps'


def _expresses(target: str, network: models.EncoderModule) -> bool:
  try:
    targets.check(target, network)
  except UserError:
    return False
  return True
