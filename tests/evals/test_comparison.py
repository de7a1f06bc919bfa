"""The table at the end of a run, its warning, and published weights beside it."""
import jax
import numpy as np
import pytest
import safetensors.numpy

from conic_jax.errors import UserError
from conic_jax.evals import comparison, encoders
from conic_jax.export import names

LABELLED = {'knn_top1': 0.288, 'linear_top1': 0.4, 'random_init': {'knn_top1': 0.333, 'linear_top1': 0.3},
            'pixels': {'knn_top1': 0.444, 'linear_top1': 0.35}}
UNLABELLED = {'probe_rankme': 12.3, 'probe_instance_top1': 0.5, 'verdict': 'learning',
              'random_init': {'probe_rankme': 11.5, 'probe_instance_top1': 0.05},
              'pixels': {'probe_rankme': 73.5, 'probe_instance_top1': 0.5},
              'baseline_weights': {'name': 'weights/moco.pth', 'probe_rankme': 40.1,
                                   'probe_instance_top1': 0.7}}


def test_the_table_has_what_was_measured():
  rows = [line.split() for line in comparison.table(LABELLED, 20).strip().splitlines()]
  assert rows == [['kNN', '(k', '=', '20)', 'linear'], ['raw', 'pixels', '44.4%', '35.0%'],
                  ['random', 'network', '33.3%', '30.0%'], ['pretrained', '28.8%', '40.0%']]
  rows = [line.split() for line in comparison.table(UNLABELLED, 20).strip().splitlines()]
  assert rows == [['own', 'other', 'view', 'RankMe'], ['raw', 'pixels', '50.0%', '73.5'],
                  ['random', 'network', '5.0%', '11.5'], ['moco.pth', '70.0%', '40.1'],
                  ['pretrained', '50.0%', '12.3']]


def test_a_network_that_learned_nothing_is_told():
  found = comparison.warning(LABELLED)
  assert 'kNN accuracy is 28.8%, and raw pixels have 44.4% and the random network has 33.3%' in found
  assert 'linear' not in found
  assert 'own other view is 50.0%, and raw pixels have 50.0%.' in comparison.warning(UNLABELLED)
  assert comparison.warning({**LABELLED, 'knn_top1': 0.5}) is None
  assert comparison.warning({**UNLABELLED, 'probe_instance_top1': 0.6}) is None
  assert comparison.warning({'knn_top1': 0.1}) is None


@pytest.fixture
def weights(tiny_config, tmp_path):
  """A ResNet-18 of an eighth of the width, as torchvision names it, in a file, and the file's encoder."""
  settings = tiny_config.encoder.copy_and_resolve_references()
  settings.blocks, settings.width, settings.stem = (), 0.125, 'imagenet'
  random = encoders.open_encoder('random', settings, 'float32', 1)
  path = tmp_path / 'published.safetensors'
  safetensors.numpy.save_file(names.named(random.variables, names.torchvision), path)
  return path, random


@pytest.mark.slow
def test_published_weights_see_images_by_their_own_normalisation(tiny_config, weights, mesh8):
  path, random = weights
  tiny_config.eval.baseline_weights = str(path)
  raw = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)
  mean, std = (np.float32(value) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
  expected = jax.jit(random.encode)(random.variables, (raw - mean) / std)
  for views in ({}, {'mean': (0., 0., 0.), 'std': (1., 1., 1.)}):
    with tiny_config.unlocked():
      tiny_config.views.update(views)
    encoder = comparison.published(tiny_config, mesh8)
    given = raw if views else (raw - mean) / std
    found = jax.jit(encoder.encode)(encoder.variables, given)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(('name', 'answer'), [
  ('random', 'random'), ('/no/such.pth', "no encoder '/no/such.pth'"), ('.', 'is no run')])
def test_weights_that_there_are_not_are_refused(tiny_config, mesh8, name, answer):
  tiny_config.eval.baseline_weights = name
  with pytest.raises(UserError, match=rf'config\.eval\.baseline_weights.*{answer}') as error:
    comparison.published(tiny_config, mesh8)
  assert len(str(error.value).splitlines()) == 1
