"""The verdict: a word by a stated rule, on runs that went one way or another."""
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conic_jax.command_line import load
from conic_jax.run import verdict

CONIC = {'method': 'conic', 'alpha': 2.5, 'temperature': 0.1, 'epochs': 100, 'batch_size': 128,
         'classifier': {'lr_scale': 1.0}, 'optimizer': {'learning_rate': 0.06, 'warmup_epochs': 0}}
MOCO = {'method': 'moco', 'temperature': 0.2, 'epochs': 100, 'momentum': {'start': 0.999},
        'optimizer': {'learning_rate': 0.03, 'warmup_epochs': 10}}
RANDOM = {'step': 0, 'epoch': 0., 'probe_rankme_random': 11.5, 'probe_instance_top1_random': 0.05,
          'probe_std_random': 0.21, 'probe_lidar_random': 31.8, 'probe_std_pixels': 0.98}
# ConIC with its paper's settings on 2,560 patches, 20 steps an epoch.
FAILING = [(1, None, 0.98, 1.05, 0.049, 19.2, 0.40), (15, 0.05, 0.92, 1.04, 0.051, 4.7, 0.32),
           (29, 0.05, 0.68, 1.03, 0.037, 4.6, 0.57), (44, 0.05, 0.70, 1.00, 0.049, 6.4, 0.66)]


def probe(epoch, top1=0.5, head=0.98, share=0.8, rankme=30., std=0.6):
  return {'step': int(epoch * 20), 'epoch': epoch, 'loss': 5., 'feature_std': head, 'loss_share': share,
          'probe_rankme': rankme, 'probe_lidar': 20., 'probe_instance_top1': top1, 'probe_std': std}


def word(*reports, settings=CONIC):
  return verdict.judge([RANDOM, *reports], settings).word


def test_a_run_that_told_no_images_apart_and_collapsed():
  reports = [probe(step / 20, top1, head, share, rankme, std)
             for step, _, head, share, top1, rankme, std in FAILING]
  assert [word(*reports[:count]) for count in range(1, 5)] == [
    'not learning yet', 'not learning yet', 'collapsing', 'collapsing']
  early, late = (verdict.judge([RANDOM, *reports[:count]], CONIC).sentence for count in (1, 4))
  assert '4.9% of the cases, in the network at random in 5.0%; the loss is at 105% of chance' in early
  assert early.endswith(
    'raise config.classifier.lr_scale (1), lower config.alpha (2.5) or raise config.epochs (100).')
  assert 'fell from 0.98 to 0.70' in late
  assert 'lower config.alpha (2.5)' in late


def test_a_healthy_run_and_its_plateau():
  rising = [probe(10 * index, 0.1 + 0.08 * index, share=0.95 - 0.05 * index) for index in range(8)]
  assert {word(*rising[:count]) for count in range(1, 9)} == {'learning'}
  still = [probe(10 * index, 0.4, share=0.7) for index in range(9)]
  assert [word(*still[:count]) for count in range(1, 10)] == 4 * ['learning'] + 5 * ['plateau']
  assert 'Little has changed since epoch 40' in verdict.judge([RANDOM, *still], CONIC).sentence
  assert word(*still, probe(100, 0.4, share=0.7)) == 'learning'  # At its end every run stands still.
  assert word(*still, probe(85, 0.45, share=0.7)) == 'learning'
  assert word(*still, probe(85, 0.4, share=0.65)) == 'learning'


# SimCLR whose rate fell to a thousandth after an eighth of the run, and MoCo v2 as it learns: epoch, share
# found, loss against chance, RankMe.
STANDING = [(2.2, 0.1445, 0.797, 54.05), (4.4, 0.1426, 0.772, 54.22), (6.6, 0.1504, 0.756, 54.32),
            (8.7, 0.1484, 0.753, 54.36), (10.9, 0.1484, 0.804, 54.30)]
RISING = [(5.4, 0.125, 0.875, 56.09), (6.6, 0.148, 0.846, 55.22), (7.7, 0.148, 0.845, 56.33),
          (8.7, 0.156, 0.836, 57.16), (9.8, 0.168, 0.847, 57.3)]


@pytest.mark.parametrize(('run', 'expected'), [(STANDING, 'plateau'), (RISING, 'learning')])
def test_noise_is_no_progress_and_hides_none(run, expected):
  assert word(*(probe(epoch, top1, share=share, rankme=rankme)
                for epoch, top1, share, rankme in run)) == expected


def test_a_share_that_cannot_rise_makes_no_plateau():
  """BYOL has no loss of chance, and its images soon find their other view nearly always."""
  without_loss = [{name: value for name, value in probe(10 * index, 0.97).items() if name != 'loss_share'}
                  for index in range(7)]
  assert word(*without_loss) == 'learning'
  assert word(*(probe(10 * index, 0.97, share=0.7) for index in range(7))) == 'plateau'
  assert word(*(probe(10 * index, 0.97, share=0.7 - 0.02 * index) for index in range(7))) == 'learning'


@pytest.mark.parametrize(('figures', 'expected'), [
  ({'head': 0.75}, 'collapsing'), ({'std': 0.0}, 'collapsing'), ({'std': 0.05}, 'collapsing'),
  ({'rankme': 4.}, 'collapsing'), ({'top1': 0.06}, 'not learning yet'),
  ({'top1': 0.15, 'share': 0.99}, 'not learning yet'), ({'top1': 0.25, 'share': 0.99}, 'learning'),
  ({'top1': 0.15, 'share': 0.9}, 'learning')])
def test_what_decides(figures, expected):
  assert word(probe(1, head=0.98), probe(2, **figures)) == expected


def test_a_head_that_begins_alike_and_spreads_does_not_collapse():
  assert word(probe(1, head=0.3), probe(2, head=0.5), settings=MOCO) == 'learning'


def test_advice_is_for_the_method():
  collapsing = verdict.judge([RANDOM, probe(1), probe(2, head=0.1)], MOCO).sentence
  assert 'lower config.temperature (0.2)' in collapsing
  assert 'alpha' not in collapsing
  waiting = verdict.judge([RANDOM, probe(1, top1=0.05)], MOCO).sentence
  assert 'lower config.momentum.start (0.999) or raise config.epochs (100)' in waiting


@pytest.mark.parametrize('name', ['conic', 'pic', 'simclr', 'byol', 'moco_v2', 'co2_moco_v2', 'instdisc'])
def test_every_verdict_reads_the_configs(name):
  config = load(f'configs/{name}.py:photos')
  for reports in ([probe(1, std=0.)], [probe(1, top1=0.)], [probe(epoch) for epoch in range(6)]):
    sentence = verdict.judge([RANDOM, *reports], config).sentence
    assert sentence.endswith('.')
    assert '..' not in sentence


def test_figures_that_are_not_there_decide_nothing():
  bare = {'step': 5, 'epoch': 1., 'probe_rankme': 3., 'probe_instance_top1': 0.1, 'probe_std': 0.2}
  assert verdict.judge([], CONIC) is None
  assert verdict.judge([RANDOM, {'step': 1, 'epoch': 1., 'loss': 2.}], CONIC) is None
  assert verdict.judge([bare], {}).word == 'learning'
  assert verdict.judge([{**bare, 'loss_share': 1.}], {}).word == 'not learning yet'
  assert verdict.judge([bare] * 6, {}).word == 'plateau'


SHARES = st.floats(0, 1)


FIGURES = st.tuples(SHARES, SHARES, st.floats(0, 3), st.floats(1, 1e3), SHARES)


@given(st.lists(FIGURES, min_size=1, max_size=8))
def test_every_run_gets_a_word_and_a_sentence(figures):
  reports = [probe(float(index), top1, head, share, rankme, std)
             for index, (top1, head, share, rankme, std) in enumerate(figures)]
  found = verdict.judge([RANDOM, *reports], CONIC)
  assert found.word in ('learning', 'not learning yet', 'collapsing', 'plateau')
  assert found.sentence.endswith('.')
  assert str(math.nan) not in found.sentence


def test_it_is_said_once_each_time_it_changes():
  said, reports = [], [RANDOM]
  for newest in (probe(1, 0.05), probe(2, 0.05), probe(3), probe(4), probe(5, head=0.1)):
    figures = {name: value for name, value in newest.items() if name not in ('step', 'epoch')}
    told = verdict.next_word(reports, newest['step'], newest['epoch'], figures, CONIC, said.append)
    reports.append({**newest, **told})
  assert [line.split('. ')[0] for line in said] == [
    'The run is not learning yet', 'The run is learning', 'The run is collapsing']
  assert [report['verdict'] for report in reports[1:]] == [
    *2 * ['not learning yet'], *2 * ['learning'], 'collapsing']
  assert verdict.next_word(reports, 6, 6., {'loss': 1.}, CONIC, said.append) == {}
  assert verdict.of_summary(reports, CONIC)['verdict'] == 'collapsing'
  assert verdict.of_summary([RANDOM], CONIC) == {}
