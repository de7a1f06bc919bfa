"""A verdict on a run, without labels: is it learning, not learning yet, collapsing, or on a plateau?

The rule compares the probe's reports (`evals/probe.py`) with the random network's, in this order:

1. *collapsing*: images become alike. The spread of the head's features (`feature_std`) is below `FALLEN` of
   its maximum in this run, or that of the encoder's (`probe_std`, `probe_rankme`) below `SUNKEN` of the
   random network's, or all features are one point (`POINT`).
2. *not learning yet*: images are not told apart. The rate at which an image finds its own other view
   (`probe_instance_top1`) has gained less than `GAIN` of the way from the random network's rate to 1; or the
   loss is above `CHANCE` of its value at chance, and the gain is below `CLEAR_GAIN`.
3. *plateau*: nothing moves, before `LATE` of the run is over. Over the last `STILL` probes, the mean of the
   first two is compared with that of the last two, as one probe is noisy: the rate rose by less than
   `FOUND_MORE` of itself, `probe_rankme` by less than `PROGRESS`, and the loss's share of chance fell by less
   than that. A rate above `SATURATED` cannot rise and says nothing here.
4. *learning*: anything else.

A missing figure decides nothing: runs without a random network's figures, or methods without a loss at
chance, are judged by the rest.
"""
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FALLEN = 0.8
SUNKEN = 0.4
POINT = 1e-3
GAIN = 0.03
CLEAR_GAIN = 0.15
CHANCE = 0.97
STILL = 5
LATE = 0.9
PROGRESS = 0.02
FOUND_MORE = 0.05
SATURATED = 0.95

LEARNING, WAITING, COLLAPSING, PLATEAU = 'learning', 'not learning yet', 'collapsing', 'plateau'


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict on a run.

  Attributes:
    word: 'learning', 'not learning yet', 'collapsing' or 'plateau'.
    sentence: the findings, with their figures, and what to change.
  """
  word: str
  sentence: str


def judge(reports: Sequence[Mapping[str, Any]], settings: Any) -> Verdict | None:
  """The verdict on a run, given its reports so far.

  Args:
    reports: those of metrics.jsonl, in order; reports between the probes may be missing.
    settings: the run's config, a ConfigDict or the mapping of config.json.

  Returns:
    None before the first probe.
  """
  probes = [report for report in reports if 'probe_rankme' in report]
  if not probes:
    return None
  random = {name.removesuffix('_random'): value for report in reports for name, value in report.items()
            if name.startswith('probe_') and name.endswith('_random')}
  last = probes[-1]
  reports = [report for report in reports if report['step'] <= last['step']]
  if seen := _collapse(reports, last, random):
    return Verdict(COLLAPSING, f'{seen}. {_against_collapse(settings)}.')
  if seen := _no_start(last, random):
    return Verdict(WAITING, f'{seen}. {_for_a_start(settings)}.')
  if seen := _standstill(probes, settings):
    return Verdict(PLATEAU, f'{seen}. {_beyond_plateau(settings)}.')
  return Verdict(LEARNING, f'{_found(last, random)}{_of_chance(last)}.')


def next_word(reports: Sequence[Mapping[str, Any]], step: int, epoch: float, figures: Mapping[str, Any],
              settings: Any, say: Callable[[str], None]) -> dict[str, str]:
  """Judges a run including its newest figures, and shows the verdict if its word has changed.

  Args:
    reports: the earlier ones; settings: as for `judge`.
    step, epoch: steps and epochs done.
    figures: the newest ones.
    say: shows a line.

  Returns:
    The word as 'verdict'; {} if the figures contain no probe.
  """
  newest = {**figures, 'step': step, 'epoch': epoch}
  verdict = judge([*reports, newest], settings) if 'probe_rankme' in figures else None
  if verdict is None:
    return {}
  before = [report['verdict'] for report in reports if 'verdict' in report]
  if not before or before[-1] != verdict.word:
    say(f'The run is {verdict.word}. {verdict.sentence}')
  return {'verdict': verdict.word}


def of_summary(reports: Sequence[Mapping[str, Any]], settings: Any) -> dict[str, str]:
  """The last word and its sentence, 'verdict' and 'verdict_sentence'; {} without a probe."""
  verdict = judge(reports, settings)
  return {} if verdict is None else {'verdict': verdict.word, 'verdict_sentence': verdict.sentence}


# ---- Findings -------------------------------------------------------------------------------------


def _collapse(reports: Sequence[Mapping[str, Any]], last: Mapping[str, Any], random: Mapping[str, float]
              ) -> str | None:
  """A phrase if features become alike, else None."""
  if last['probe_std'] < POINT:
    return f'All images have the same features (spread {last["probe_std"]:.2g})'
  spreads = [report['feature_std'] for report in reports if 'feature_std' in report]
  if 'feature_std' in last and last['feature_std'] < FALLEN * max(spreads):
    return (f"The head's features become alike: their spread fell from {max(spreads):.2f} to "
            f'{last["feature_std"]:.2f}')
  for name, what in (('probe_std', 'spread'), ('probe_rankme', 'effective rank')):
    if last[name] < SUNKEN * random.get(name, 0):
      return (f"The encoder's features become alike: their {what} is {last[name]:.3g}, in the network at "
              f'random {random[name]:.3g}')
  return None


def _no_start(last: Mapping[str, Any], random: Mapping[str, float]) -> str | None:
  """A phrase if the run does not tell images apart yet, else None."""
  base = random.get('probe_instance_top1')
  gain = math.inf if base is None else (last['probe_instance_top1'] - base) / max(1 - base, 1e-9)
  share = last.get('loss_share', 0)
  if gain < GAIN or (share > CHANCE and gain < CLEAR_GAIN) or (share > CHANCE and base is None):
    return f'{_found(last, random)}{_of_chance(last)}'
  return None


def _standstill(probes: Sequence[Mapping[str, Any]], settings: Any) -> str | None:
  """A phrase if the run's measures stand still; None if they move or the run is about to end."""
  if len(probes) < STILL:
    return None
  before, last = probes[-STILL], probes[-1]
  epochs = setting(settings, 'epochs')
  if epochs and last['epoch'] > LATE * epochs:
    return None
  if before['probe_instance_top1'] > SATURATED and 'loss_share' not in last:
    return None
  window = probes[-STILL:]
  if (_growth(window, 'probe_instance_top1') > FOUND_MORE or _growth(window, 'probe_rankme') > PROGRESS
      or _growth(window, 'loss_share') < -PROGRESS):
    return None
  return (f'Little has changed since epoch {before["epoch"]:.0f}: an image finds its other view in '
          f'{last["probe_instance_top1"]:.1%} of the cases, then {before["probe_instance_top1"]:.1%}'
          f'{_of_chance(last)}')


def _growth(window: Sequence[Mapping[str, Any]], name: str) -> float:
  """Relative rise of a figure, from the mean of the first two probes to that of the last two."""
  if not all(name in probe for probe in window):
    return 0.0
  first, last = (probes[0][name] + probes[1][name] for probes in (window[:2], window[-2:]))
  if first <= 0:
    return math.inf if last > 0 else 0.0
  return last / first - 1


def _found(last: Mapping[str, Any], random: Mapping[str, float]) -> str:
  beside = ''
  if 'probe_instance_top1' in random:
    beside = f', in the network at random in {random["probe_instance_top1"]:.1%}'
  return f'An image finds its other view in {last["probe_instance_top1"]:.1%} of the cases{beside}'


def _of_chance(last: Mapping[str, Any]) -> str:
  return f'; the loss is at {last["loss_share"]:.0%} of chance' if 'loss_share' in last else ''


# ---- Advice ---------------------------------------------------------------------------------------


def setting(settings: Any, path: str, default: Any = None) -> Any:
  """The setting at a path such as 'classifier.lr_scale', of a ConfigDict or of config.json's mapping."""
  for name in path.split('.'):
    if not hasattr(settings, 'get') or settings.get(name) is None:
      return default
    settings = settings.get(name)
  return settings


def _against_collapse(settings: Any) -> str:
  """Advice against collapse, for the run's method."""
  advice = [f'lower config.{path} ({value:g})' for path, value in _pulls(settings)]
  advice += _named(settings, 'temperature', 'lower') + _named(settings, 'optimizer.learning_rate', 'lower')
  if setting(settings, 'optimizer.warmup_epochs') == 0:
    advice += _named(settings, 'optimizer.warmup_epochs', 'raise')
  return f'If it goes on: {_listed(advice)}'


def _for_a_start(settings: Any) -> str:
  """Advice for a run that does not learn yet, for its method."""
  # A row is visited once per epoch, so it moves little in few epochs.
  advice = _named(settings, 'momentum.start', 'lower')
  if setting(settings, 'method') != 'data_parallel':
    advice = _named(settings, 'classifier.lr_scale', 'raise') + advice
  if setting(settings, 'alpha_pace') == 0 and setting(settings, 'alpha', 0):
    advice.append('set config.alpha_pace to 4, so that consistency waits')
  advice += [f'lower config.{path} ({value:g})' for path, value in _pulls(settings)]
  advice += _named(settings, 'epochs', 'raise')
  return f'Early in a run that is usual; if it stays so: {_listed(advice)}'


def _beyond_plateau(settings: Any) -> str:
  """Advice for a run on a plateau."""
  epochs = setting(settings, 'epochs')
  rest = f' of the {epochs} epochs' if epochs else ''
  return (f'The rest{rest} may bring little but for the fall of the rate at their end: try the encoder of '
          'the last checkpoint on your task; for more, use more images or stronger config.views')


def _pulls(settings: Any) -> list[tuple[str, float]]:
  """Weights, if above zero, of the terms that make views alike."""
  paths = 'alpha', 'consistency.alpha'
  return [(path, value) for path in paths if (value := setting(settings, path, 0))]


def _named(settings: Any, path: str, verb: str) -> list[str]:
  value = setting(settings, path)
  return [] if value is None else [f'{verb} config.{path} ({value:g})']


def _listed(advice: Sequence[str]) -> str:
  if len(advice) < 2:
    return advice[0] if advice else 'see the settings of the method'
  return f'{", ".join(advice[:-1])} or {advice[-1]}'
