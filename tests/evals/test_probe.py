"""The probe: which views, when, and what is measured of them on every mesh."""
import doctest
import types

import jax.numpy as jnp
import numpy as np
import pytest
from support import views_of
from tiny import ArraySource, coloured, mean_colour

from conic_jax import measures
from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import probe as probes
from conic_jax.evals.features import FrozenEncoder, pixels

pytestmark = pytest.mark.slow

LABELS = np.arange(42) % 4
VIEWS = views_of(count=2, size=8, blur=0.0)
COLOUR, RAW = FrozenEncoder(mean_colour, {}), FrozenEncoder(pixels, {})
NAMES = ['probe_instance_top1', 'probe_lidar', 'probe_rankme', 'probe_std']


def constant(variables, images):
  del variables
  return jnp.ones((len(images), 5))


def make(mesh, images=40, source=None, batch_size=16, views=VIEWS, times=12, seed=3):
  config = load('configs/conic.py:folder')
  config.seed, config.batch_size = seed, batch_size
  config.probe.images, config.probe.times = images, times
  return probes.make(views, source or ArraySource(coloured(LABELS), LABELS), config, 1000, mesh)


def test_measures_are_those_of_the_views_that_all_encoders_see(mesh, mesh8):
  """On one device and on eight, alone or beside others, whatever the batch, and twice the same."""
  encoders = [COLOUR, RAW, FrozenEncoder(mean_colour, {'scale': jnp.float32(3)})]
  colour, raw, scaled = probes.measure(make(mesh, batch_size=24), encoders)
  assert sorted(colour) == NAMES
  for figures, expected in ((colour, probes.measure(make(mesh8), encoders[:1])[0]), (scaled, colour)):
    assert figures == pytest.approx(expected, rel=1e-4)
  probe = make(mesh)
  assert probes.measure(probe, encoders[:1]) == probes.measure(probe, encoders[:1])
  assert 1 < colour['probe_rankme'] <= 3
  assert raw['probe_rankme'] > colour['probe_rankme']
  assert colour != pytest.approx(probes.measure(make(mesh, seed=4), encoders[:1])[0], rel=1e-4)


def test_views_are_read_once_where_they_are_few(mesh8, monkeypatch):
  read, source = [], ArraySource(coloured(LABELS), LABELS)
  monkeypatch.setattr(source, 'read', lambda ids: read.append(len(ids)) or ArraySource.read(source, ids))
  kept, figures = make(mesh8, source=source), []
  for most, expected in ((2**28, [40, 40]), (0, [80, 120])):
    monkeypatch.setattr(probes, '_MOST_KEPT', most)
    probe = kept if most else make(mesh8, source=source)
    for count in expected:
      figures += probes.measure(probe, [COLOUR])
      assert sum(read) == count
  assert all(other == figures[0] for other in figures)


def test_every_image_is_seen_in_two_views_and_a_quarter_in_four(mesh8, monkeypatch):
  seen = {}
  monkeypatch.setattr(measures, 'lidar', lambda views: seen.update(several=views) or 1.)
  monkeypatch.setattr(measures, 'retrieval', lambda first, second: seen.update(pairs=(first, second)) or 1.)
  probes.measure(make(mesh8), [RAW])
  several, (first, second) = seen['several'], seen['pairs']
  assert several.shape == (10, 4, 192)
  assert first.shape == second.shape == (40, 192)
  np.testing.assert_array_equal(several[:, 0], first[:10])
  np.testing.assert_array_equal(several[:, 1], second[:10])
  assert len(np.unique(np.concatenate([*several, first[10:], second[10:]]), axis=0)) == 100


def test_an_undecodable_image_is_left_out(mesh8, monkeypatch):
  shapes = []
  monkeypatch.setattr(measures, 'rankme', lambda features: shapes.append(features.shape) or 1.)
  source = ArraySource(coloured(LABELS), LABELS, broken=[5, 6, 7])
  probes.measure(make(mesh8, images=2000, source=source), [RAW])
  assert shapes == [(39, 192)]


@pytest.mark.parametrize('images', [1, 2, 5])
def test_features_that_are_all_alike_are_of_one_dimension(mesh8, images):
  source = ArraySource(np.full((images, 8, 8, 3), 7, np.uint8), np.zeros(images))
  figures, = probes.measure(make(mesh8, source=source), [FrozenEncoder(constant, {})])
  assert figures == pytest.approx({'probe_rankme': 1, 'probe_lidar': 1, 'probe_std': 0,
                                   'probe_instance_top1': float(images == 1)}, abs=1e-6)


def test_the_baselines_are_named(mesh8):
  probe = make(mesh8)
  found = probes.baselines(probe, COLOUR)
  assert sorted(found) == sorted(f'{name}_{suffix}' for name in NAMES for suffix in ('pixels', 'random'))
  assert found['probe_rankme_random'] == probes.measure(probe, [COLOUR])[0]['probe_rankme']


def test_it_can_be_off(mesh8):
  probe = make(mesh8, images=0)
  assert not probe.steps
  assert probes.measure(probe, [COLOUR]) == [{}]
  assert probes.baselines(probe, COLOUR) == {}


@pytest.mark.parametrize(('images', 'times'), [(-1, 12), (2000, 0)])
def test_numbers_that_no_probe_has_are_refused(mesh8, images, times):
  with pytest.raises(UserError, match=r'config\.probe is of '):
    make(mesh8, images=images, times=times)


@pytest.mark.parametrize(('last', 'times', 'expected'), [
  (1200, 12, [24, 109, 218, 327, 436, 545, 655, 764, 873, 982, 1091, 1200]), (6, 12, range(1, 7)),
  (100, 1, [100]), (100, 2, [2, 100]), (1, 12, [1])])
def test_probes_are_spread_over_the_run(last, times, expected):
  assert sorted(probes.steps(last, times)) == list(expected)


def test_a_short_run_probes_fewer_images():
  settings = types.SimpleNamespace(images=2000, times=12)
  counts = [probes.num_images(settings, 3000, trained) for trained in (100, 480_000, 10**8)]
  assert counts == [256, 800, 2000]
  assert probes.num_images(settings, 48, 10**8) == 48


def test_the_loss_as_a_share_of_chance():
  chance = 'loss_instance', np.log(8)
  assert probes.loss_share(chance, {'loss': 9., 'loss_instance': np.log(2)}) == {
    'loss_share': pytest.approx(1 / 3)}
  assert probes.loss_share(None, {'loss': 9.}) == {}
  assert probes.loss_share(chance, {'loss': 9.}) == {}
  assert probes.loss_share(('loss', 0.), {'loss': 9.}) == {}


def test_examples():
  assert doctest.testmod(probes).failed == 0
