"""What an experiment is: its claim, its grid of runs, and the lines that finished runs left.

An experiment is a folder of experiments/ whose `__init__.py` has an `EXPERIMENT`. Its results are
results.jsonl beside it, a line for each finished run; a run that several experiments ask for is done once.
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
  """A command on the finished training, and what of its result is kept.

  Attributes:
    argv: a module and its flags; {run}, {data} and {seed} are filled in.
    file: the JSON file that it leaves in the run.
    names: the figures of the file that are kept.
  """
  argv: tuple[str, ...]
  file: str
  names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to train, or to measure without training.

  Attributes:
    config: a file of configs/ without its ending, 'conic', with the scale's preset, or with one of its own,
      'conic:photos'; '' trains nothing.
    settings: config fields, by path, that override the scale's; of a variant that trains nothing, what its
      result depends on.
    rate: the learning rate in units of the one that was tuned for the config.
    rate_of: the config whose tuned rate it has; '' is its own.
    after: what is measured on the run.
    place: where it stands on the picture's axis; None for one of several names.
    line: which line of the picture it belongs to.
  """
  config: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rate: float = 1.0
  rate_of: str = ''
  after: tuple[Step, ...] = ()
  place: float | None = None
  line: str = ''


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large the runs are.

  Attributes:
    name: the results of 'cpu' are results.jsonl, of others results_NAME.jsonl.
    preset: of the configs.
    common: settings of every run.
    configs: settings of a config's runs beside these.
    images: to train on.
    lengths: of the runs of experiments that vary it, in epochs, the last one the usual.
    batches: sizes a factor of four apart, the middle one the usual.
    window: classes of a sampled softmax.
    iterations: of segmentation.
    tuned: whether rates are tuned, not the papers'.
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
    name: of its folder.
    claim: a sentence.
    source: paper, figure or table.
    paper: what the paper found, with its figures.
    variants: the grid by the names of its runs.
    questions: what must hold.
    asides: questions that are answered beside these and do not decide.
    measures: the figures of the table and of the picture, names of `statistics.MEASURES`.
    seeds: of each variant.
    tuned: whether runs take the learning rate that was tuned for their config.
    bare: whether runs take only their variant's settings, not the scale's.
    own_page: whether its page is written by a command of its own.
    pools: whether its questions are to the runs of all experiments.
    axis: what the variants' places are, for the picture.
    logarithmic: whether that axis is.
    meaning: one sentence on what was found, written by a person.
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
  """A run of a variant with a seed; all its settings are known."""
  experiment: str
  variant: str
  seed: int
  scale: str
  config: str
  settings: Mapping[str, Any]
  after: tuple[Step, ...]

  @property
  def key(self) -> str:
    """The same for all jobs that train and measure the same."""
    return identity(self.scale, self.config, self.settings, self.seed, [step.argv for step in self.after])


def identity(scale: str, config: str, settings: Mapping[str, Any], seed: int, after: Iterable[Iterable[str]]
             ) -> str:
  """A name for what a run computes."""
  return json.dumps([scale, config, settings, seed, [list(argv) for argv in after]], sort_keys=True)


def load(names: Iterable[str]) -> list[Experiment]:
  """The experiments of these folders."""
  return [importlib.import_module(f'experiments.{name}').EXPERIMENT for name in names]


def all_names() -> list[str]:
  """Folders that have an `EXPERIMENT`, rates first, as others wait for them."""
  names = sorted(path.parent.name for path in HERE.glob('*/__init__.py')
                 if 'EXPERIMENT = ' in path.read_text())
  return sorted(names, key=lambda name: name != 'rates')


# ---- Results --------------------------------------------------------------------------------------


def results_file(experiment: str, scale: str, root: Path = HERE) -> Path:
  """Where an experiment's lines are."""
  return root / experiment / ('results.jsonl' if scale == 'cpu' else f'results_{scale}.jsonl')


def read(scale: str, root: Path = HERE) -> dict[str, dict[str, Any]]:
  """The lines of all experiments, by what their runs computed."""
  found = {}
  for path in sorted(root.glob(f'*/{results_file("", scale).name}')):
    for text in path.read_text().splitlines():
      try:
        line = json.loads(text)
      except json.JSONDecodeError:  # It was cut short: its run is done again.
        continue
      found[identity(scale, line['config'], line['settings'], line['seed'], line['after'])] = line
  return found


def append(job: Job, line: Mapping[str, Any], root: Path = HERE) -> None:
  """Keeps the line of a finished run with the first experiment that asked for it, whole or not at all."""
  path = results_file(job.experiment, job.scale, root)
  path.parent.mkdir(parents=True, exist_ok=True)
  kept = {'variant': job.variant, 'seed': job.seed, 'config': job.config, 'settings': dict(job.settings),
          'after': [list(step.argv) for step in job.after], **line}
  with path.open('a+b') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    cut_short = file.read(1) not in (b'', b'\n')
    file.write(b'\n' * cut_short + json.dumps(kept, ensure_ascii=False).encode() + b'\n')
    file.flush()


def jobs(experiment: Experiment, scale: Scale, tuned: Mapping[str, Mapping[str, Any]]) -> list[Job]:
  """The runs of an experiment whose settings are known, the first seed's first.

  Args:
    experiment: its grid.
    scale: the settings that all have.
    tuned: of each config the settings that tuning chose; a variant of another config waits.
  """
  found = []
  for seed in range(experiment.seeds):
    for name, variant in experiment.variants(scale).items():
      config = variant.rate_of or variant.config
      if config and experiment.tuned and scale.tuned and config not in tuned:
        continue
      settings = dict(variant.settings) if experiment.bare else settings_of(
        variant, scale, tuned.get(config, {}) if experiment.tuned else {})
      found.append(Job(experiment.name, name, seed, scale.name, variant.config, settings, variant.after))
  return found


def settings_of(variant: Variant, scale: Scale, tuned: Mapping[str, Any]) -> dict[str, Any]:
  """All fields that a variant's runs are started with, as values that JSON keeps."""
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
