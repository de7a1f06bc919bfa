"""Tests whether runs with several seeds support a paper's claim: paired tests, and names for their outcomes.

Every comparison is paired by seed, which determines the initial weights, the order of the images and their
views. With n seeds and differences d, the test is Student's t on d with n − 1 degrees of freedom, at 95 %,
two-sided, without correction for the number of questions: of twenty questions with no true effect, one is
expected to be answered anyway.
"""
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import scipy.stats

HOLDS, FAILS, OPEN = 'holds', 'does not hold here', 'not decided'
CONFIDENCE, POWER = 0.95, 0.8
FEWEST_SEEDS, MOST_SEEDS = 3, 200

# The figures of a run, by variant and seed.
Figures = Mapping[str, Mapping[int, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Measure:
  """How to name and show a figure; `factor` is 100 for shares, shown in per cent and points."""
  title: str
  factor: float = 1.0
  digits: int = 2


MEASURES = {
  'epochs': Measure('epochs', digits=0),
  'knn_top1': Measure('kNN, %', 100, 1), 'linear_top1': Measure('linear, %', 100, 1),
  'random_init_knn_top1': Measure('kNN of the random network, %', 100, 1),
  'random_init_linear_top1': Measure('linear of the random network, %', 100, 1),
  'pixels_knn_top1': Measure('kNN of raw pixels, %', 100, 1),
  'pixels_linear_top1': Measure('linear of raw pixels, %', 100, 1),
  'loss': Measure('loss', digits=3), 'loss_instance': Measure('classification loss', digits=3),
  'loss_consistency': Measure('consistency loss', digits=4),
  'instance_top1': Measure('instance accuracy, %', 100, 1),
  'feature_std': Measure('spread of features'), 'probe_rankme': Measure('RankMe', digits=1),
  'probe_instance_top1': Measure('instance retrieval, %', 100, 1),
  'miou': Measure('mean IoU, %', 100, 1),
  'similarity_gap': Measure('similarity of own above other views, %', 100, 2),
  'class_retrieval': Measure('nearest image of the same class, %', 100, 1),
  'class_chance': Measure('chance of the same class, %', 100, 1),
  'alignment': Measure('alignment, squared distance of views', digits=3),
  'uniformity': Measure('uniformity', digits=3)}


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer that the runs give to a question.

  Attributes:
    verdict: HOLDS, FAILS or OPEN.
    question: what was asked, in words.
    found: the difference with its spread, and if not decided, how many seeds would decide it.
  """
  verdict: str
  question: str
  found: str


class Question(Protocol):
  """A question that runs can decide."""

  def answer(self, figures: Figures) -> Answer:
    """The answer according to the finished runs."""
    ...


@dataclasses.dataclass(frozen=True)
class Higher:
  """Whether a figure of one variant is higher than that of another: a paired t-test.

  Attributes:
    than: the figure of the second variant, if it is a different one.
  """
  measure: str
  first: str
  second: str
  than: str = ''

  def answer(self, figures: Figures) -> Answer:
    """HOLDS if it is higher at 95 %, FAILS if it is lower at 95 %."""
    than = f'the {title(self.than)}' if self.than else ''
    of_second = '' if self.than and self.first == self.second else self.second
    question = f'{title(self.measure)}: {self.first} above {" of ".join(filter(None, (than, of_second)))}'
    return decide(question, differences(figures, self.measure, self.first, self.second, self.than),
                  self.measure)


@dataclasses.dataclass(frozen=True)
class HigherAtEqual:
  """Whether a figure of one variant is higher when another figure is equal: a paired t-test.

  Both are read from the epochs of the runs: `at` falls as they learn, and each pair of runs is compared at
  the lowest value that both reach, interpolated between the two epochs around it. There, one run is at its
  end and the other is still in training, at a higher learning rate.
  """
  measure: str
  at: str
  first: str
  second: str

  def answer(self, figures: Figures) -> Answer:
    """HOLDS if it is higher at 95 %, FAILS if it is lower at 95 %."""
    question = f'{title(self.measure)} at equal {title(self.at)}: {self.first} above {self.second}'
    runs, others = figures.get(self.first, {}), figures.get(self.second, {})
    gains = np.array([self._gain(runs[seed]['by_epoch'], others[seed]['by_epoch'])
                      for seed in sorted(runs.keys() & others.keys())], np.float64)
    return decide(question, gains, self.measure)

  def _gain(self, run: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> float:
    level = max(min(run[self.at]), min(other[self.at]))
    return at_level(run[self.at], run[self.measure], level) - at_level(
      other[self.at], other[self.measure], level)


@dataclasses.dataclass(frozen=True)
class HigherGain:
  """Whether a figure gains more from one change than from another: a paired t-test on the difference.

  Attributes:
    first, second: pairs of variants, each with the change and without it.
  """
  measure: str
  first: tuple[str, str]
  second: tuple[str, str]

  def answer(self, figures: Figures) -> Answer:
    """HOLDS if the first gain is higher at 95 %, FAILS if it is lower."""
    first, second = (' over '.join(pair) for pair in (self.first, self.second))
    question = f'{title(self.measure)}: the gain of {first} above that of {second}'
    seeds = sorted(set.intersection(*(set(figures.get(name, {})) for name in (*self.first, *self.second))))
    value = lambda name, seed: figures[name][seed].get(self.measure, math.nan)
    gains = np.array([value(self.first[0], seed) - value(self.first[1], seed)
                      - value(self.second[0], seed) + value(self.second[1], seed) for seed in seeds])
    return decide(question, gains[np.isfinite(gains)], self.measure)


@dataclasses.dataclass(frozen=True)
class Below:
  """Whether a figure of a variant is below a level: a t-test over its seeds."""
  measure: str
  variant: str
  level: float

  def answer(self, figures: Figures) -> Answer:
    """HOLDS if it is below at 95 %, FAILS if it is above."""
    shown_level = f'{self.level * MEASURES[self.measure].factor:g}'
    question = f'{title(self.measure)}: {self.variant} below {shown_level}'
    values = [run[self.measure] for run in figures.get(self.variant, {}).values() if self.measure in run]
    return decide(question, self.level - np.array(values, np.float64), self.measure)


@dataclasses.dataclass(frozen=True)
class NotBelow:
  """Whether a figure of one variant is as high as another's, or higher: a one-sided test against a margin.

  Attributes:
    margin: how much lower still counts as equally good, in the figure's own units.
  """
  measure: str
  first: str
  second: str
  margin: float

  def answer(self, figures: Figures) -> Answer:
    """HOLDS if it is above the other minus the margin at 95 %, FAILS if it is below that."""
    margin = f'{self.margin * MEASURES[self.measure].factor:g}'
    question = f'{title(self.measure)}: {self.first} no more than {margin} below {self.second}'
    gains = differences(figures, self.measure, self.first, self.second)
    if len(gains) < FEWEST_SEEDS:
      return Answer(OPEN, question, too_few(gains))
    low, high = interval(gains, 2 * CONFIDENCE - 1)
    verdict = HOLDS if low > -self.margin else FAILS if high < -self.margin else OPEN
    return Answer(verdict, question, shown(gains, self.measure))


@dataclasses.dataclass(frozen=True)
class Alike:
  """Whether a figure of two variants is the same to within a margin: two one-sided tests at 95 % each.

  Attributes:
    margin: in the figure's own units; for an accuracy, 0.02 is two points.
  """
  measure: str
  first: str
  second: str
  margin: float

  def answer(self, figures: Figures) -> Answer:
    """HOLDS if the 90 % interval lies within the margin, FAILS if the 95 % interval lies outside it."""
    factor = MEASURES[self.measure].factor
    points = ' points' if factor == 100 else ''
    question = (f'{title(self.measure)}: {self.first} equals {self.second} to within '
                f'{self.margin * factor:g}{points}')
    gains = differences(figures, self.measure, self.first, self.second)
    if len(gains) < FEWEST_SEEDS:
      return Answer(OPEN, question, too_few(gains))
    low, high = interval(gains, 2 * CONFIDENCE - 1)
    outer_low, outer_high = interval(gains, CONFIDENCE)
    inside = -self.margin < low and high < self.margin
    outside = outer_low > self.margin or outer_high < -self.margin
    verdict = HOLDS if inside else FAILS if outside else OPEN
    found = shown(gains, self.measure)
    return Answer(verdict, question, found + (f'; {needed_within(gains, self.margin)}'
                                              if verdict == OPEN else ''))


@dataclasses.dataclass(frozen=True)
class RisesWith:
  """Whether two figures rise together over all variants: Spearman's rank correlation of their means."""
  first: str
  second: str

  def answer(self, figures: Figures) -> Answer:
    """HOLDS if the correlation is above zero at 95 %, FAILS if it is below."""
    question = f'{title(self.first)} and {title(self.second)} rise together'
    both = [[(run[self.first], run[self.second]) for run in runs.values()
             if self.first in run and self.second in run] for runs in figures.values()]
    pairs = [np.mean(runs, axis=0) for runs in both if runs]
    if len(pairs) < 2 * FEWEST_SEEDS:
      return Answer(OPEN, question, f'{len(pairs)} variants')
    first, second = np.array(pairs).T
    if not (np.ptp(first) and np.ptp(second)):
      return Answer(OPEN, question, f'one of them is the same in all of {len(pairs)} variants')
    found: Any = scipy.stats.spearmanr(first, second)
    verdict = OPEN if found.pvalue > 1 - CONFIDENCE else HOLDS if found.statistic > 0 else FAILS
    said = f'ρ = {found.statistic:.2f} over {len(pairs)} variants, p = {found.pvalue:.2g}'
    return Answer(verdict, question, said)


def overall(answers: Sequence[Answer]) -> str:
  """FAILS if any answer does, HOLDS if all do, OPEN otherwise."""
  verdicts = [answer.verdict for answer in answers]
  if FAILS in verdicts:
    return FAILS
  return HOLDS if verdicts and set(verdicts) == {HOLDS} else OPEN


def decide(question: str, gains: np.ndarray, measure: str) -> Answer:
  """HOLDS if the mean of the differences is above zero at 95 %, FAILS if it is below."""
  if len(gains) < FEWEST_SEEDS:
    return Answer(OPEN, question, too_few(gains))
  low, high = interval(gains, CONFIDENCE)
  verdict = HOLDS if low > 0 else FAILS if high < 0 else OPEN
  found = f'{shown(gains, measure)}, p = {chance(gains):.2g}'
  return Answer(verdict, question, found + (f'; {needed(gains)}' if verdict == OPEN else ''))


def differences(figures: Figures, measure: str, first: str, second: str, than: str = '') -> np.ndarray:
  """First minus second, float64 [seeds that both have]; `than` is the second's figure if different."""
  runs, others = figures.get(first, {}), figures.get(second, {})
  pairs = [(runs[seed].get(measure), others[seed].get(than or measure))
           for seed in sorted(runs.keys() & others.keys())]
  return np.array([one - two for one, two in pairs if one is not None and two is not None], np.float64)


def at_level(falling: Sequence[float], values: Sequence[float], level: float) -> float:
  """The value where the other figure first falls to a level, linear between the two epochs around it."""
  after = next(index for index, value in enumerate(falling) if value <= level)
  if after == 0:
    return values[0]
  share = (falling[after - 1] - level) / (falling[after - 1] - falling[after])
  return values[after - 1] + share * (values[after] - values[after - 1])


def interval(gains: np.ndarray, confidence: float) -> tuple[float, float]:
  """Student's confidence interval of the mean; a point if all differences are equal."""
  mean, error = gains.mean(), scipy.stats.sem(gains)
  if not error:
    return float(mean), float(mean)
  low, high = scipy.stats.t.interval(confidence, len(gains) - 1, loc=mean, scale=error)
  return float(low), float(high)


def chance(gains: np.ndarray) -> float:
  """Two-sided p: the probability of a mean at least this far from zero if there is no difference."""
  error = scipy.stats.sem(gains)
  if not error:
    return 0.0 if gains.mean() else 1.0
  return float(2 * scipy.stats.t.sf(abs(gains.mean()) / error, len(gains) - 1))


def needed(gains: np.ndarray) -> str:
  """How many seeds would show such a difference four times out of five."""
  if not gains.mean():
    return 'no number of seeds shows a difference of zero'
  ratio = gains.std(ddof=1) / abs(gains.mean())
  quantiles = lambda seeds: scipy.stats.t.ppf([(1 + CONFIDENCE) / 2, POWER], seeds - 1).sum()
  return fewest(len(gains) + 1, lambda seeds: quantiles(seeds) * ratio <= seeds ** 0.5)


def needed_within(gains: np.ndarray, margin: float) -> str:
  """How many seeds would bring the interval of such differences inside a margin."""
  room, deviation = margin - abs(gains.mean()), gains.std(ddof=1)
  half = lambda seeds: scipy.stats.t.ppf(CONFIDENCE, seeds - 1) * deviation / seeds ** 0.5
  return fewest(len(gains) + 1, lambda seeds: half(seeds) < room)


def fewest(more: int, enough: Callable[[int], bool]) -> str:
  """A phrase for the smallest number of seeds, from `more` on, that is enough."""
  for seeds in range(more, MOST_SEEDS + 1):
    if enough(seeds):
      return f'{seeds} seeds would decide it at such a difference'
  return f'at such a difference more than {MOST_SEEDS} seeds would be needed'


def too_few(gains: np.ndarray) -> str:
  """The message for too few seeds."""
  return f'{len(gains)} of at least {FEWEST_SEEDS} seeds'


def shown(gains: np.ndarray, measure: str) -> str:
  """Mean and standard deviation of differences, in points of an accuracy."""
  scaled = MEASURES[measure].factor * gains
  digits = MEASURES[measure].digits
  points = ' points' if MEASURES[measure].factor == 100 else ''
  return f'{scaled.mean():+.{digits}f} ± {scaled.std(ddof=1):.{digits}f}{points} over {len(gains)} seeds'


def title(measure: str) -> str:
  """The figure's title without its unit."""
  return MEASURES[measure].title.removesuffix(', %')
