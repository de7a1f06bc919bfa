"""Segmentation: the metric by hand, the loss, whole training, and every image once."""
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from conic_jax.command_line import load
from conic_jax.data import masks
from conic_jax.errors import UserError
from conic_jax.evals import segment
from conic_jax.evals.encoders import open_encoder
from conic_jax.hardware.mesh import make_mesh, replicated, to_global
from conic_jax.views import evaluated
from conic_jax.visualise import segmentation

pytestmark = pytest.mark.slow

VOID = masks.VOID
PLAIN = evaluated({'mean': (0.0,) * 3, 'std': (1.0,) * 3})
NETWORK = ConfigDict({'name': 'resnet18', 'blocks': (1, 1), 'stem': 'cifar', 'width': 0.125,
                      'zero_gamma': False, 'output_stride': 32})
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], np.uint8)


def size_of(id):
  return (32, 40) if id % 3 else (48, 48)


def scene(seed, height, width):
  """Noisy quarters of three colours, each a class; a void line between left and right."""
  rng = np.random.default_rng(seed)
  quarters = rng.integers(0, 3, (2, 2)).astype(np.uint8)
  mask = np.kron(quarters, np.ones((height // 2, width // 2), np.uint8))
  image = COLOURS[mask] + rng.integers(-40, 40, (height, width, 3))
  mask[:, width // 2] = 255
  return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
  """train/ with 16 scenes and val/ with 11 of two sizes, one of which cannot be decoded."""
  root = tmp_path_factory.mktemp('scenes')
  for split, count in (('train', 16), ('val', 11)):
    for part in ('images', 'masks'):
      (root / split / part).mkdir(parents=True)
    for id in range(count):
      image, mask = scene(1000 * (split == 'val') + id, *size_of(id))
      Image.fromarray(image).save(root / split / 'images' / f'{id:02d}.bmp')
      Image.fromarray(mask).save(root / split / 'masks' / f'{id:02d}.png')
  (root / 'val/images/07.bmp').write_bytes(b'broken')
  return root


def tiny(scenes):
  config = load('configs/segment.py:folder')
  config.data.dir, config.network, config.eval.batch_size = str(scenes), NETWORK, 8
  config.segmentation.update(
    num_classes=3, iterations=40, batch_size=8, learning_rate=0.1, crop=(32, 32), short_side=32,
    test_size=(32, 40), rates=(1, 2), channels=8, report_every=20)
  return config


@pytest.mark.parametrize('settings', [
  {'name': 'vit_tiny', 'blocks': (1, 1), 'width': 1 / 12, 'patch': 8, 'positions': 'learned'},
  {'name': 'convnext_tiny', 'blocks': (1, 1, 1), 'width': 1 / 12}], ids=lambda settings: settings['name'])
def test_transformers_and_convnexts_are_trained_further(settings, scenes, mesh8, tmp_path, open_session):
  config, encoder = tiny(scenes), open_encoder('random', types.SimpleNamespace(**settings))
  config.segmentation.update(iterations=2, learning_rate=0.01, rates=(1,))
  with open_session(mesh8) as session:
    outcome = segment.run(encoder, config, session)
  assert 0 < outcome.figures['miou'] < 1
  trained = open_encoder(str(tmp_path / 'session'))
  assert type(trained.network) is type(encoder.network)
  assert set(trained.variables['params']) == set(encoder.variables['params'])
  images = np.zeros((1, 16, 24, 3), np.float32)
  after, before = (jax.jit(each.encode)(each.variables, images) for each in (trained, encoder))
  assert np.abs(after - before).max() > 0


def test_training_beats_chance_and_a_trained_encoder_a_random_one(scenes, mesh8, tmp_path, open_session):
  """A long training on one device, and a few iterations on eight from its backbone and from a fresh one."""
  config, fresh, lines = tiny(scenes), open_encoder('random', NETWORK), []
  mesh1 = make_mesh(devices=jax.devices()[:1])
  settings = segment.Segmentation(**config.segmentation)
  train_pairs, test_pairs = (masks.open_pairs(config.data, split) for split in ('train', 'val'))
  model, variables = segment.build(fresh, settings, 0, mesh1)
  learnt = segment.train(model, variables, train_pairs, settings, fresh.views, 0,
                         open_session(mesh1, log=lines.append))
  confusion, _ = segment.test(model, learnt, test_pairs, settings, fresh.views, 8, mesh1, lines.append)
  # One class everywhere would reach about a third in that class, and nothing in the two others.
  assert segment.scores(confusion, settings.class_names)['miou'] > 0.75
  assert [line.split('  ')[0] for line in lines[:2]] == ['iteration 20/40', 'iteration 40/40']
  assert '1 images could not be decoded' in lines[2]

  trained = dataclasses.replace(fresh, variables={name: jax.tree.map(np.asarray, part['backbone'])
                                                  for name, part in learnt.items()})
  before = jax.tree.map(np.copy, trained.variables)
  config.segmentation.update(iterations=6, learning_rate=0.02)
  reached, unaided = (segment.run(encoder, config, open_session(mesh8, name))
                      for name, encoder in (('trained', trained), ('fresh', fresh)))
  jax.tree.map(np.testing.assert_array_equal, trained.variables, before)
  assert reached.figures['miou'] > unaided.figures['miou'] + 0.1
  assert reached.figures['miou'] == pytest.approx(np.mean(list(reached.figures['iou'].values())))
  reached.pictures['predictions'](tmp_path / 'predictions.png')
  with Image.open(tmp_path / 'predictions.png') as picture:
    assert picture.width > 900


def test_one_device_and_eight_take_the_same_step(scenes, mesh8):
  settings = segment.Segmentation(**{**tiny(scenes).segmentation, 'rates': (2,)})
  encoder = open_encoder('random', ConfigDict({**NETWORK, 'blocks': (1,)}))
  rng = np.random.default_rng(0)
  mask = np.where(rng.random((8, 16, 16)) < 0.2, VOID, rng.integers(0, 3, (8, 16, 16))).astype(np.uint8)
  # Of colours of their own: the means of noise alone vary too little for the norm of the pooled map.
  images = rng.integers(0, 128, (8, 1, 1, 3), np.uint8) + rng.integers(0, 128, (8, 16, 16, 3), np.uint8)
  batch = {'image': images, 'valid': np.arange(8) != 5, 'mask': mask}
  taken = []
  for mesh in (make_mesh(devices=jax.devices()[:1]), mesh8):
    model, variables = segment.build(encoder, settings, 0, mesh)
    step = jax.jit(lambda state, batch, model=model: segment._step(
      state, batch, model=model, settings=settings, spec=evaluated({}), seed=0)[:2],
      out_shardings=replicated(mesh))
    state = segment.begin(variables, settings).replace(step=jnp.int32(20), rng=None)
    taken.append(jax.tree.map(np.array, (step(state, to_global(batch, mesh)), state)))
  (one, one_metrics), before = taken[0]
  (eight, eight_metrics), _ = taken[1]
  one_loss, eight_loss = one_metrics['loss'], eight_metrics['loss']
  assert one_loss == pytest.approx(eight_loss, rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, eight)
  # Bare SGD: the first velocity is the gradient with decay, and it moves the weights by the poly rate.
  rate = settings.learning_rate * (1 - 20 / 40) ** 0.9
  jax.tree.map(lambda new, old, velocity: np.testing.assert_allclose(new, old - rate * velocity, atol=1e-6),
               one.params, before.params, one.opt_state[1].trace)


class Brightest:
  """In place of a network: the class is the brightest channel."""

  def apply(self, variables, images):
    return images


def test_every_image_counts_once_at_its_own_size(scenes, mesh):
  config = tiny(scenes)
  config.segmentation.update(short_side=0, test_size=(48, 48))
  settings = segment.Segmentation(**config.segmentation)
  pairs = masks.open_pairs(config.data, 'val')
  lines = []
  confusion, examples = segment.test(Brightest(), {}, pairs, settings, PLAIN, 8, mesh, lines.append)
  expected = np.zeros((3, 3), np.int64)
  for id in set(range(11)) - {7}:
    image, mask = scene(1000 + id, *size_of(id))
    kept = mask != 255
    expected += confusion_matrix(mask[kept], image.argmax(axis=-1)[kept], labels=range(3))
  np.testing.assert_array_equal(confusion, expected)
  broken = f'{scenes}/val/images/07.bmp (or its mask)'
  assert lines == [f'1 images could not be decoded and were left out: {broken}.']
  assert len(examples) == 6


def test_what_was_resized_is_counted_at_the_size_of_its_mask(scenes, mesh8):
  config = tiny(scenes)
  config.segmentation.update(short_side=16, test_size=(16, 20))
  confusion, examples = segment.test(
    Brightest(), {}, masks.open_pairs(config.data, 'val'), segment.Segmentation(**config.segmentation), PLAIN,
    8, mesh8, lambda line: None)
  sizes = [size_of(id) for id in range(11) if id != 7]
  assert confusion.sum() == sum(height * (width - 1) for height, width in sizes)
  assert np.diag(confusion).sum() > 0.95 * confusion.sum()
  assert {example.image.shape for example in examples} == {(16, 16, 3), (16, 20, 3)}


def test_the_figures_by_hand():
  truth = np.array([[0, 0, 1, 1], [0, 2, 1, VOID]], np.uint8)
  prediction = np.array([[0, 1, 1, 1], [0, 0, 0, 3]], np.uint8)
  confusion = segment.count_pixels(truth, prediction, 5)
  figures = segment.scores(confusion, ('a', 'b', 'c', 'd', 'e'))
  # a: 2 of 3 true and 2 wrong; b: 2 of 3 true and 1 wrong; c: never found; the only d is void; no e.
  assert figures['iou'] == {'a': pytest.approx(2 / 5), 'b': 0.5, 'c': 0.0, 'd': None, 'e': None}
  assert figures['miou'] == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
  assert figures['pixel_accuracy'] == pytest.approx(4 / 7)


def test_the_figures_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  truth = rng.integers(0, 7, (50, 60)).astype(np.uint8)
  prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 7, truth.shape))
  truth[rng.random(truth.shape) < 0.1] = VOID
  confusion = segment.count_pixels(truth, prediction, 7)
  kept = truth != VOID
  np.testing.assert_array_equal(confusion, confusion_matrix(truth[kept], prediction[kept]))
  figures = segment.scores(confusion, tuple('abcdefg'))
  assert figures['miou'] == pytest.approx(jaccard_score(truth[kept], prediction[kept], average='macro'))
  each = jaccard_score(truth[kept], prediction[kept], average=None)
  np.testing.assert_allclose(list(figures['iou'].values()), each)


def test_the_loss_is_the_mean_over_known_pixels():
  rng = np.random.default_rng(0)
  logits, mask = rng.normal(0, 3, (2, 4, 5, 6)), rng.integers(0, 6, (2, 4, 5)).astype(np.uint8)
  mask[rng.random(mask.shape) < 0.3] = VOID
  kept = mask != VOID
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  expected = -np.log(np.take_along_axis(probabilities[kept], mask[kept][:, None].astype(int), axis=1)).mean()
  assert float(segment.pixel_loss(jnp.float32(logits), mask)) == pytest.approx(expected, rel=1e-5)
  assert float(segment.pixel_loss(jnp.float32(logits), np.full_like(mask, VOID))) == 0


def test_a_loss_that_diverges_is_told(scenes, mesh8, open_session):
  diverged = types.SimpleNamespace(apply=lambda variables, images, *args, **kwargs: (
    (images * variables['params']['backbone'] * jnp.nan,) * 2, {'batch_stats': {'backbone': {}}}))
  config = tiny(scenes)
  config.segmentation.report_every = 1
  settings, pairs = segment.Segmentation(**config.segmentation), masks.open_pairs(config.data, 'train')
  message = r'loss was nan at step 1 of the segmentation.*Lower .*learning_rate, which is 0\.1'
  with pytest.raises(UserError, match=message):
    segment.train(diverged, {'params': {'backbone': jnp.ones(())}, 'batch_stats': {'backbone': {}}}, pairs,
                  settings, PLAIN, 0, open_session(mesh8))


@pytest.mark.parametrize(('changes', 'words'), [
  ({'num_classes': 2}, r'of the 16 masks looked at do not suit.*are none of the 2 classes \(2\)'),
  ({'classes': ('a', 'b')}, 'has 2 different names and num_classes is 3'),
  ({'crop': (0, 32)}, 'are at least 1'), ({'rates': ()}, 'at least one rate'),
  ({'scale': (0, 2)}, 'above 0'), ({'batch_size': 12}, 'cannot be split over 8 devices'),
])
def test_wrong_settings_are_told_before_training(changes, words, scenes, mesh8, open_session):
  config = tiny(scenes)
  config.segmentation.update(changes)
  with pytest.raises(UserError, match=words):
    segment.run(open_encoder('random', NETWORK), config, open_session(mesh8))


@pytest.mark.parametrize('preset', [
  'cityscapes', 'coco_stuff', 'ade20k', 'voc', 'pascal_context', 'camvid', 'folder'])
def test_the_presets_agree_with_themselves(preset):
  config = load(f'configs/segment.py:{preset}')
  settings = segment.Segmentation(**config.segmentation)
  table = settings.label_table()
  assert (table < 254).sum() == settings.num_classes == len(settings.class_names)
  assert config.result == f'segment_{preset}'


def test_void_pixels_are_not_painted():
  image = np.full((2, 2, 3), 100, np.uint8)
  drawn = segmentation._over(image, np.array([[0, VOID], [VOID, 1]], np.uint8), segmentation._colours(30))
  np.testing.assert_array_equal((drawn == image).all(axis=-1), [[False, True], [True, False]])
  assert len(np.unique(segmentation._colours(60), axis=0)) == 60
