"""Experiments: the claim, the grid of runs, and the lines of finished runs.

An experiment is a folder in experiments/ whose `__init__.py` has an `EXPERIMENT`. Its results are in
results.jsonl in the same folder, one line per finished run; a run that several experiments need is done once.
"""
import dataclasses
import fcntl
import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.statistics import Question

HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Step:
  """A command to run after training, and which of its results to keep.

  Attributes:
    argv: a module and its flags; {run}, {data} and {seed} are filled in.
    file: the JSON file that it writes to the run folder.
    names: the figures to keep from that file.
  """
  argv: tuple[str, ...]
  file: str
  names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to train, or to measure without training.

  Attributes:
    config: a file in configs/ without its ending: 'conic' takes the scale's preset, 'conic:photos' its own;
      '' trains nothing.
    settings: config fields, by path, that override the scale's; for a variant that trains nothing, what its
      result depends on.
    rate: the learning rate, as a multiple of the one tuned for the config.
    rate_of: the config whose tuned rate it uses; '' is its own.
    before: commands to run before training, as a module and its flags; {run}, {data} and {seed} are filled
      in, {run} in the settings too.
    after: what to measure on the run.
    place: its position on the figure's axis; None if the figure lists variants by name.
    line: the line of the figure that it belongs to.
  """
  config: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rate: float = 1.0
  rate_of: str = ''
  before: tuple[tuple[str, ...], ...] = ()
  after: tuple[Step, ...] = ()
  place: float | None = None
  line: str = ''


@dataclasses.dataclass(frozen=True)
class Scale:
  """The size of the runs.

  Attributes:
    name: results are in results.jsonl for 'cpu', in results_NAME.jsonl for the others.
    preset: preset of the configs.
    common: settings of every run.
    configs: additional settings, by config.
    images: number of training images.
    lengths: epochs of the runs of experiments that vary them; the last is the usual one.
    batches: batch sizes a factor of four apart; the middle one is the usual one.
    window: classes of a sampled softmax.
    iterations: iterations of segmentation.
    tuned: whether learning rates are tuned, rather than the papers'.
  """
  name: str
  preset: str
  common: Mapping[str, Any]
  configs: Mapping[str, Mapping[str, Any]]
  images: int
  lengths: tuple[int, ...]
  batches: tuple[int, int, int]
  window: int
  iterations: int
  tuned: bool = True


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A claim, the runs that test it, and the questions that decide it.

  Attributes:
    name: name of its folder.
    claim: the claim, as a sentence.
    source: paper, figure or table.
    paper: what the paper found, with its figures.
    variants: the grid, by the names of its runs.
    questions: what must hold.
    asides: additional questions that are answered but do not count.
    measures: what the table and the figure show, as names in `statistics.MEASURES`.
    seeds: number of seeds per variant.
    tuned: whether runs use the learning rate that was tuned for their config.
    bare: whether runs use only their variant's settings, not the scale's.
    own_page: whether its own command writes its page.
    pools: whether its questions are about the runs of all experiments.
    axis: label of the figure's axis, on which the variants' places lie.
    logarithmic: whether that axis is logarithmic.
    meaning: one hand-written sentence on what was found.
  """
  name: str
  claim: str
  source: str
  paper: str
  variants: Callable[[Scale], Mapping[str, Variant]]
  questions: tuple[Question, ...]
  asides: tuple[Question, ...] = ()
  measures: tuple[str, ...] = ('knn_top1', 'linear_top1')
  seeds: int = 3
  tuned: bool = True
  bare: bool = False
  own_page: bool = False
  pools: bool = False
  axis: str = ''
  logarithmic: bool = False
  meaning: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
  """A run of a variant with one seed; all its settings are known."""
  experiment: str
  variant: str
  seed: int
  scale: str
  config: str
  settings: Mapping[str, Any]
  after: tuple[Step, ...]
  before: tuple[tuple[str, ...], ...] = ()

  @property
  def key(self) -> str:
    """Identical for all jobs that train and measure the same."""
    return identity(self.scale, self.config, self.settings, self.seed, self.around)

  @property
  def around(self) -> list[list[str]]:
    """The commands before and after training."""
    return [list(argv) for argv in (*self.before, *(step.argv for step in self.after))]


def identity(scale: str, config: str, settings: Mapping[str, Any], seed: int, after: Iterable[Iterable[str]]
             ) -> str:
  """A string that identifies what a run computes."""
  return json.dumps([scale, config, settings, seed, [list(argv) for argv in after]], sort_keys=True)


def load(names: Iterable[str]) -> list[Experiment]:
  """The experiments in these folders."""
  return [importlib.import_module(f'experiments.{name}').EXPERIMENT for name in names]


def all_names() -> list[str]:
  """Folders that have an `EXPERIMENT`; rates comes first because the others wait for it."""
  names = sorted(path.parent.name for path in HERE.glob('*/__init__.py')
                 if 'EXPERIMENT = ' in path.read_text())
  return sorted(names, key=lambda name: name != 'rates')


# ---- Results --------------------------------------------------------------------------------------


def results_file(experiment: str, scale: str, root: Path = HERE) -> Path:
  """The file with an experiment's lines."""
  return root / experiment / ('results.jsonl' if scale == 'cpu' else f'results_{scale}.jsonl')


def read(scale: str, root: Path = HERE) -> dict[str, dict[str, Any]]:
  """The lines of all experiments, keyed by what their runs computed."""
  found = {}
  for path in sorted(root.glob(f'*/{results_file("", scale).name}')):
    for text in path.read_text().splitlines():
      try:
        line = json.loads(text)
      except json.JSONDecodeError:  # The line is cut short: its run is repeated.
        continue
      found[identity(scale, line['config'], line['settings'], line['seed'], line['after'])] = line
  return found


def append(job: Job, line: Mapping[str, Any], root: Path = HERE) -> None:
  """Writes the line of a finished run, whole or not at all, to the first experiment that asked for it."""
  path = results_file(job.experiment, job.scale, root)
  path.parent.mkdir(parents=True, exist_ok=True)
  kept = {'variant': job.variant, 'seed': job.seed, 'config': job.config, 'settings': dict(job.settings),
          'after': job.around, **line}
  with path.open('a+b') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    cut_short = file.read(1) not in (b'', b'\n')
    file.write(b'\n' * cut_short + json.dumps(kept, ensure_ascii=False).encode() + b'\n')
    file.flush()


def jobs(experiment: Experiment, scale: Scale, tuned: Mapping[str, Mapping[str, Any]]) -> list[Job]:
  """The runs of an experiment whose settings are known, starting with those of the first seed.

  Args:
    experiment: the experiment, with its grid.
    scale: the settings that all runs share.
    tuned: the settings that tuning chose, by config; variants of other configs wait.
  """
  found = []
  for seed in range(experiment.seeds):
    for name, variant in experiment.variants(scale).items():
      config = variant.rate_of or variant.config
      if config and experiment.tuned and scale.tuned and config not in tuned:
        continue
      settings = dict(variant.settings) if experiment.bare else settings_of(
        variant, scale, tuned.get(config, {}) if experiment.tuned else {})
      found.append(Job(experiment.name, name, seed, scale.name, variant.config, settings, variant.after,
                       variant.before))
  return found


def settings_of(variant: Variant, scale: Scale, tuned: Mapping[str, Any]) -> dict[str, Any]:
  """All fields that a variant's runs start with, as values that JSON can hold."""
  if not variant.config:
    return dict(variant.settings)
  settings = {**scale.common, **scale.configs.get(variant.config, {}), **tuned, **variant.settings}
  if variant.rate != 1:
    settings['optimizer.learning_rate'] = float(f'{settings["optimizer.learning_rate"] * variant.rate:.6g}')
  return settings


def lines_of(experiment: Experiment, scale: Scale, tuned: Mapping[str, Mapping[str, Any]],
             results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
  """The lines of the finished runs, by variant and seed; unfinished runs are left out."""
  found: dict[str, dict[int, dict[str, Any]]] = {}
  for job in jobs(experiment, scale, tuned):
    if job.key in results:
      found.setdefault(job.variant, {})[job.seed] = dict(results[job.key])
  return found
