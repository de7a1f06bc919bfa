"""Whether runs support a claim: against SciPy's own paired tests, and where the answer is known."""
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from experiments import statistics
from experiments.statistics import (
  FAILS,
  HOLDS,
  OPEN,
  Alike,
  Below,
  Higher,
  HigherAtEqual,
  HigherGain,
  NotBelow,
  RisesWith,
)


def of(**variants):
  """Figures by variant and seed of lists of kNN."""
  return {name: {seed: {'knn_top1': value} for seed, value in enumerate(values)}
          for name, values in variants.items()}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=6))
def test_a_difference_is_one_where_the_paired_test_says_so(pairs):
  first, second = np.array(pairs).T
  answer = Higher('knn_top1', 'one', 'two').answer(of(one=first, two=second))
  if np.ptp(first - second) < 1e-6:
    return
  sure = scipy.stats.ttest_rel(first, second).pvalue < 0.05
  assert answer.verdict == (OPEN if not sure else HOLDS if first.mean() > second.mean() else FAILS)


def test_answers_that_are_known():
  question = Higher('knn_top1', 'one', 'two')
  assert question.answer(of(one=[0.5, 0.6, 0.4], two=[0.4, 0.5, 0.3])).verdict == HOLDS
  assert question.answer(of(one=[0.4, 0.5, 0.31], two=[0.5, 0.6, 0.4])).verdict == FAILS
  mixed = question.answer(of(one=[0.5, 0.4, 0.45], two=[0.4, 0.5, 0.44]))
  assert mixed.verdict == OPEN
  assert mixed.found == ('+0.3 ± 10.0 points over 3 seeds, p = 0.96; at such a difference more than 200 '
                         'seeds would be needed')
  assert mixed.question == 'kNN: one above two'
  assert question.answer(of(one=[0.5, 0.6], two=[0.4, 0.5])).found == '2 of at least 3 seeds'
  assert question.answer({}).verdict == OPEN


def test_seeds_that_only_one_of_them_has_do_not_count():
  figures = of(one=[0.5, 0.6, 0.41, 0.9], two=[0.4, 0.5, 0.3])
  assert statistics.differences(figures, 'knn_top1', 'one', 'two') == pytest.approx([0.1, 0.1, 0.11])


def test_a_figure_beside_another_of_the_same_run():
  figures = {'one': {seed: {'knn_top1': 0.1, 'random_init_knn_top1': 0.2 + seed / 100} for seed in range(3)}}
  answer = Higher('random_init_knn_top1', 'one', 'one', than='knn_top1').answer(figures)
  assert answer.verdict == HOLDS
  assert answer.question == 'kNN of the random network: one above the kNN'


def test_as_good_as_needs_an_interval_within_the_margin():
  question = Alike('knn_top1', 'one', 'two', 0.02)
  close = of(one=[0.5, 0.51, 0.49, 0.5], two=[0.501, 0.508, 0.491, 0.502])
  assert question.answer(close).verdict == HOLDS
  assert question.answer(close).question == 'kNN: one equals two to within 2 points'
  unclear = question.answer(of(one=[0.5, 0.56, 0.45], two=[0.52, 0.5, 0.5]))
  assert unclear.verdict == OPEN
  seeds = int(unclear.found.split('; ')[1].split()[0])
  gains = np.array([-0.02, 0.06, -0.05])
  half = lambda count: scipy.stats.t.ppf(0.95, count - 1) * gains.std(ddof=1) / count ** 0.5
  assert half(seeds) < 0.02 - abs(gains.mean()) <= half(seeds - 1)
  assert question.answer(of(one=[0.5, 0.51, 0.49], two=[0.4, 0.41, 0.38])).verdict == FAILS
  # A difference that is there, and too small to matter, is as good.
  assert question.answer(of(one=[0.51, 0.52, 0.51], two=[0.5, 0.51, 0.501])).verdict == HOLDS


def test_the_interval_is_students():
  gains = np.array([0.1, 0.2, 0.15, 0.3])
  low, high = statistics.interval(gains, 0.95)
  half = scipy.stats.t.ppf(0.975, 3) * gains.std(ddof=1) / 2
  assert (low, high) == (pytest.approx(gains.mean() - half), pytest.approx(gains.mean() + half))
  assert statistics.interval(np.full(3, 0.5), 0.95) == (0.5, 0.5)


def test_the_seeds_that_would_decide_it_do_four_times_of_five():
  rng = np.random.default_rng(0)
  gains = np.array([0.0, 1.0, 2.0, -0.5])
  seeds = int(statistics.needed(gains).split()[0])
  draws = rng.normal(gains.mean(), gains.std(ddof=1), (4000, seeds))
  found = (scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
  assert found == pytest.approx(0.8, abs=0.06)
  assert statistics.needed(np.zeros(3)) == 'no number of seeds shows a difference of zero'


def test_figures_that_rise_together():
  rng = np.random.default_rng(0)
  along = rng.uniform(0, 1, 20)
  noisy = along + 0.1 * rng.normal(size=20)
  runs = {str(index): {0: {'instance_top1': one, 'linear_top1': two, 'knn_top1': -two}}
          for index, (one, two) in enumerate(zip(along, noisy, strict=True))}
  assert RisesWith('instance_top1', 'linear_top1').answer(runs).verdict == HOLDS
  assert RisesWith('instance_top1', 'knn_top1').answer(runs).verdict == FAILS
  assert RisesWith('probe_instance_top1', 'knn_top1').answer(runs).found == '0 variants'


def test_seeds_of_a_variant_are_one_point_and_a_constant_decides_nothing():
  runs = {str(index): {seed: {'instance_top1': index, 'linear_top1': (index, 9 - index)[seed]}
                       for seed in range(2)} for index in range(8)}
  answer = RisesWith('instance_top1', 'linear_top1').answer(runs)
  assert answer.verdict == OPEN
  assert answer.found == 'one of them is the same in all of 8 variants'


def test_no_more_than_a_margin_below():
  question = NotBelow('knn_top1', 'one', 'two', 0.02)
  assert question.answer(of(one=[0.5, 0.51, 0.49], two=[0.4, 0.41, 0.3])).verdict == HOLDS
  assert question.answer(of(one=[0.5, 0.51, 0.49], two=[0.505, 0.51, 0.495])).verdict == HOLDS
  assert question.answer(of(one=[0.5, 0.51, 0.49], two=[0.55, 0.57, 0.55])).verdict == FAILS
  assert question.answer(of(one=[0.5, 0.51, 0.49], two=[0.52, 0.53, 0.5])).verdict == OPEN


def test_below_a_level_and_gains_that_differ():
  low = of(one=[0.1, 0.12, 0.11])
  assert Below('knn_top1', 'one', 0.5).answer(low).verdict == HOLDS
  assert Below('knn_top1', 'one', 0.05).answer(low).verdict == FAILS
  assert Below('knn_top1', 'one', 0.11).answer(low).question == 'kNN: one below 11'
  figures = of(a=[0.3, 0.4, 0.5], b=[0.1, 0.2, 0.31], c=[0.5, 0.6, 0.7], d=[0.49, 0.6, 0.69])
  question = HigherGain('knn_top1', ('a', 'b'), ('c', 'd'))
  assert question.answer(figures).verdict == HOLDS
  assert question.answer(figures).question == 'kNN: the gain of a over b above that of c over d'
  assert HigherGain('knn_top1', ('c', 'd'), ('a', 'b')).answer(figures).verdict == FAILS
  assert question.answer({}).verdict == OPEN


def test_figures_are_compared_where_the_loss_is_equal():
  assert statistics.at_level([8., 6., 4.], [1., 2., 3.], 5.) == 2.5
  assert statistics.at_level([8., 6., 4.], [1., 2., 3.], 8.) == 1.
  run = lambda losses, values: {'by_epoch': {'loss_instance': losses, 'alignment': values}}
  figures = {'slow': {seed: run([8., 7., 6.], [0.9, 0.8, 0.7 + seed / 50]) for seed in range(3)},
             'fast': {seed: run([8., 6., 4.], [0.9, 0.5, 0.3]) for seed in range(3)}}
  answer = HigherAtEqual('alignment', 'loss_instance', 'slow', 'fast').answer(figures)
  assert answer.verdict == HOLDS
  assert answer.found.startswith('+0.220 ± 0.020 over 3 seeds')


def test_a_claim_holds_where_all_of_it_does():
  answer = lambda verdict: statistics.Answer(verdict, '', '')
  assert statistics.overall([answer(HOLDS), answer(HOLDS)]) == HOLDS
  assert statistics.overall([answer(HOLDS), answer(OPEN)]) == OPEN
  assert statistics.overall([answer(HOLDS), answer(FAILS), answer(OPEN)]) == FAILS
  assert statistics.overall([]) == OPEN
