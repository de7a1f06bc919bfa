import dataclasses
import itertools

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from conic_jax.command_line import load
from conic_jax.errors import UserError
from conic_jax.evals import svm
from conic_jax.evals.encoders import open_encoder
from conic_jax.evals.svm import SvmSettings, average_precision, mean_average_precision
from conic_jax.run.session import Session

NAMES = ('a', 'b', 'c')
FEW = SvmSettings(costs=(0.01, 1.0, 100.0), folds=3, max_iterations=2000)


def ranked(*present):
  """Images found in this order."""
  return np.array(present, bool), -np.arange(len(present), dtype=float)


@pytest.mark.parametrize(('present', 'scores', 'at_points', 'area'), [
  # Precision 1, 1/2, 2/3, 3/4, 3/5 at recall 1/3, 1/3, 2/3, 1, 1: the envelope is 1, then 3/4.
  (*ranked(1, 0, 1, 1, 0), (4 * 1 + 7 * 3 / 4) / 11, 1 / 3 + 2 / 3 * 3 / 4),
  (*ranked(0, 1), 1 / 2, 1 / 2),
  # Found at once, all thresholds have the precision 1/4.
  (np.array([0, 1, 0, 0], bool), np.zeros(4), 1 / 4, 1 / 4),
  # A recall of 3/10 reaches the point 0.3, which is a little above it as a sum of floats.
  (*ranked(*[1] * 3, *[0] * 90, *[1] * 7), (4 * 1 + 7 * 10 / 100) / 11, 0.3 + 0.7 * 10 / 100),
])
def test_average_precision_by_hand(present, scores, at_points, area):
  assert average_precision(present, scores) == pytest.approx((at_points, area), abs=1e-12)


@pytest.mark.parametrize('ties', [False, True])
def test_average_precision_equals_the_definition(ties):
  rng = np.random.default_rng(0)
  for _ in range(20):
    scores = rng.normal(size=60)
    scores = scores.round() if ties else scores
    present = rng.random(60) < 0.3
    found = [scores >= threshold for threshold in np.unique(scores)]
    curve = [((present & some).sum() / present.sum(), present[some].mean()) for some in found]
    def precision(recall, curve=curve):
      return max(p for r, p in curve if r >= recall - 1e-12)
    at_points = np.mean([precision(point / 10) for point in range(11)])
    # The area under a step function, from the middles of its steps.
    steps = np.unique([0, *(r for r, _ in curve)])
    area = sum((right - left) * precision((left + right) / 2) for left, right in itertools.pairwise(steps))
    assert average_precision(present, scores) == pytest.approx((at_points, area))


def test_the_area_is_scikit_learns_where_precision_falls():
  present, scores = ranked(1, 1, 0, 1, 0, 0, 1, 0)
  assert average_precision(present, scores)[1] == pytest.approx(average_precision_score(present, scores))
  present, scores = ranked(1, 0, 1, 1)
  assert average_precision(present, scores)[1] > average_precision_score(present, scores) + 0.01


def draw(count, seed, prevalence=0.3):
  """Features [count, 6] around a direction a class, and targets [count, 3] with some difficult."""
  rng = np.random.default_rng(seed)
  targets = (rng.random((count, 3)) < prevalence).astype(np.int8)
  features = targets @ np.random.default_rng(9).normal(size=(3, 6)) + 0.7 * rng.normal(size=(count, 6))
  targets[(targets == 1) & (rng.random((count, 3)) < 0.2)] = -1
  return features.astype(np.float32), targets


def test_equals_scikit_learns_search_over_the_dual_svm():
  train, test = draw(90, 0), draw(120, 1)
  figures = mean_average_precision(train, test, NAMES, FEW, lambda line: None)
  unit_train, unit_test = (normalize(features.astype(np.float64)) for features, _ in (train, test))
  precisions = []
  for column, name in enumerate(NAMES):
    dual = LinearSVC(class_weight={1: 2, -1: 1}, dual=True, tol=1e-8, max_iter=100_000, random_state=0)
    search = GridSearchCV(dual, {'C': FEW.costs}, scoring='average_precision', cv=3)
    search.fit(unit_train, np.where(train[1][:, column] == 1, 1, -1))
    known = test[1][:, column] != -1
    assert not known.all()
    assert (train[1][:, column] == -1).any()
    scores = search.decision_function(unit_test[known])
    precisions.append(average_precision(test[1][known, column] == 1, scores))
    assert figures['cost'][name] == search.best_params_['C']
    assert figures['average_precision'][name] == pytest.approx(precisions[-1][0], abs=1e-6)
    assert figures['average_precision_area'][name] == pytest.approx(precisions[-1][1], abs=1e-6)
  assert (figures['map'], figures['map_area']) == pytest.approx(np.mean(precisions, axis=0), abs=1e-6)
  assert len(set(figures['cost'].values())) > 1
  assert (figures['left_out'], figures['num_train'], figures['num_test']) == ([], 90, 120)


def test_rare_classes_are_told():
  train, test = draw(60, 0), draw(60, 1)
  names = ('full', 'two', 'one', 'all', 'never', 'unseen')
  columns = [np.tile(targets[:, :1], (1, 6)) for _, targets in (train, test)]
  columns[0][:, 1:] = 0
  columns[0][:2, 1], columns[0][:1, 2], columns[0][:, 3], columns[0][:9, 5] = 1, 1, 1, 1
  columns[1][:, 5], said = 0, []
  figures = mean_average_precision((train[0], columns[0]), (test[0], columns[1]), names, FEW, said.append)
  assert figures['left_out'] == ['all', 'never', 'unseen']
  assert list(figures['cost']) == ['full', 'two', 'one']
  assert figures['cost']['one'] == 1.0
  assert figures['map'] == pytest.approx(np.mean(list(figures['average_precision'].values())))
  assert [line.rpartition(': ')[2] for line in said[1:]] == ['all, never, unseen', 'one', 'two']


def test_svms_that_do_not_converge_are_counted_once(recwarn):
  said = []
  mean_average_precision(draw(60, 0), draw(60, 1), NAMES, dataclasses.replace(FEW, max_iterations=1),
                         said.append)
  assert [line for line in said if 'converge' in line] == [
    '3 SVMs did not converge in 1 iterations: raise config.svm.max_iterations.']
  assert not recwarn.list


@pytest.mark.parametrize(('settings', 'message'), [
  ({'costs': ()}, 'config.svm.costs'), ({'costs': (1.0, 0.0)}, 'config.svm.costs'),
  ({'folds': 1}, 'config.svm.folds')])
def test_wrong_settings_are_told(settings, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(FEW, **settings)


def test_nothing_to_measure_is_told():
  features, targets = draw(30, 0)
  with pytest.raises(UserError, match='No class has images'):
    mean_average_precision((features, targets), (features, 0 * targets), NAMES, FEW, lambda line: None)


@pytest.fixture(scope='module')
def labelled_folder(tmp_path_factory):
  """Noise, brighter in the quadrant of each label and darker in the last one; one image cannot be read."""
  root, rng = tmp_path_factory.mktemp('multilabel'), np.random.default_rng(0)
  for split, count in (('train', 90), ('test', 85)):
    (root / split).mkdir()
    lines = ['image,labels']
    for i in range(count):
      present = rng.random(3) < 0.4
      raised = 20 * np.append(present, -present.sum()).reshape(2, 2)
      image = rng.normal(128, 50, (12, 12, 3)) + raised.repeat(6, axis=0).repeat(6, axis=1)[..., None]
      Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / split / f'{i:02}.png')
      lines.append(f'{i:02}.png,' + ';'.join(np.array(NAMES)[present]))
    (root / split / 'labels.csv').write_text('\n'.join(lines))
  (root / 'train' / '04.png').write_bytes(b'broken')
  return root


def quadrants(variables, images):
  """An encoder that sees where an image is bright, as the mean over all places does not."""
  return images.reshape(-1, 2, 6, 2, 6, 3).mean((2, 4, 5)).reshape(-1, 4)


def measure(folder, mesh, encode=None):
  config = load('configs/svm.py:folder')
  config.data.dir = str(folder)
  config.views.size = config.eval.resize = 12
  config.eval.batch_size = 16
  config.svm.costs = (0.1, 1.0, 10.0)
  config.network.update(stem='cifar', blocks=(1,), width=0.125)
  encoder = open_encoder('random', config.network)
  if encode is not None:
    encoder = dataclasses.replace(encoder, encode=encode)
  before = jax.tree.map(np.array, encoder.variables)
  figures = svm.run(encoder, config, Session(folder, mesh)).figures
  jax.tree.map(np.testing.assert_array_equal, encoder.variables, before)
  return figures


@pytest.mark.slow
def test_features_that_tell_beat_random_ones_and_chance(labelled_folder, mesh):
  told = measure(labelled_folder, mesh, quadrants)
  assert (told['num_train'], told['num_test']) == (89, 85)
  assert list(told['cost']) == list(NAMES)
  assert told['map'] > 0.9
  random = measure(labelled_folder, mesh)
  assert 0.4 < random['map'] < told['map'] - 0.1, random
