"""The SVM protocol: one linear SVM per class on frozen features, for multi-label images (VOC07)."""
import dataclasses
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import chex
import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from conic_jax import measures
from conic_jax.data import multilabel, parallel
from conic_jax.errors import UserError
from conic_jax.evals import protocols
from conic_jax.evals.encoders import Encoder
from conic_jax.evals.features import to_host
from conic_jax.hardware.mesh import replicated
from conic_jax.run.session import Session

# For a class with too few positives or negatives to cross-validate: scikit-learn's default.
_DEFAULT_COST = 1.0
_RECALLS = np.linspace(0, 1, 11)
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class SvmSettings:
  """Settings of the SVMs: squared hinge loss, L2 penalty, positives weighted twice.

  Attributes:
    costs: candidate costs; each class takes the one with the best cross-validated average precision (ties go
      to the first).
    folds: folds of the cross-validation.
    max_iterations: most iterations of one SVM.
  """
  costs: tuple[float, ...]
  folds: int
  max_iterations: int

  def __post_init__(self):
    if not self.costs or min(self.costs) <= 0:
      raise UserError(f'config.svm.costs is {self.costs}: name at least one cost, all above 0.')
    if self.folds < 2:
      raise UserError(f'config.svm.folds is {self.folds}: cross-validation takes at least 2.')


@dataclasses.dataclass(frozen=True)
class _ClassResult:
  """Result of one class's SVM; `folds` is 0 if the cost is the default."""
  average_precision: float
  average_precision_area: float
  cost: float
  folds: int
  converged: bool


def average_precision(present: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
  """Average precision of one class: VOC07's eleven-point value, and the area under the envelope.

  p(r) = max of the precision at recalls of at least r; (1/11) Σ p(r) over r in 0, 0.1, … 1, and ∫ p(r) dr.

  Args:
    present: bool [n], at least one True.
    scores: [n]; images with equal scores are retrieved together.

  Returns:
    Both, as shares of 1.

  Source: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010, section 4.2; the
    challenge has used the area since 2010.
  """
  precision, recall, _ = precision_recall_curve(present, scores)
  # From full recall down; the last point is no threshold, only the end that scikit-learn adds to the curve.
  envelope = np.maximum.accumulate(precision[:-1])
  at_points = [envelope[recall[:-1] >= point - _ROUNDING][-1] for point in _RECALLS]
  return float(np.mean(at_points)), float(-np.sum(np.diff(recall) * envelope))


def run(encoder: Encoder, config: Any, session: Session) -> protocols.Outcome:
  """Runs the protocol on the data that a config names.

  Args:
    encoder: gives the features.
    config: `data`, `views`, `eval` and `svm` of configs/svm.py.
    session: session of the run.

  Returns:
    The figures of `mean_average_precision`.

  Raises:
    UserError: if the data has no labels or the settings are invalid.
  """
  mesh = session.mesh
  settings = SvmSettings(tuple(config.svm.costs), config.svm.folds, config.svm.max_iterations)
  train, test = multilabel.open_splits(config.data, (config.data.train, config.data.test), config.svm.labels)
  variables = jax.device_put(encoder.variables, replicated(mesh))

  def with_targets(source):
    features, _, ids = to_host(protocols.features_of(encoder.encode, variables, source, config, mesh))
    return features, source.targets[ids]

  return protocols.Outcome(
    mean_average_precision(with_targets(train), with_targets(test), train.class_names, settings,
                           session.log))


def mean_average_precision(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray],
                           class_names: Sequence[str], settings: SvmSettings,
                           say: protocols.Say) -> dict[str, Any]:
  """Trains one SVM per class on unit features and measures its average precision.

  As in VISSL, an image whose objects of a class are all difficult is a negative of that class in training
  and is left out of its test. The only difference: what VISSL's script calls VOC07 mAP is the area.

  Args:
    train, test: features float32 [N, F] and targets int8 [N, C], 1 present, 0 absent, -1 difficult.
    class_names: names of the C classes.
    settings: settings of the SVMs.
    say: prints a line.

  Returns:
    'map' (eleven-point) and 'map_area', shares of 1, means over the classes; by class
    'average_precision', 'average_precision_area' and 'cost'; 'left_out', names of the classes without
    positives or negatives in training, or without positives in the test; numbers of images.

  Raises:
    UserError: if no class is left.

  Source: Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation Learning, ICCV 2019.
  """
  chex.assert_rank([*train, *test], 2)
  names = np.array(class_names)
  measured = (train[1] == 1).any(axis=0) & (train[1] != 1).any(axis=0) & (test[1] == 1).any(axis=0)
  if not measured.any():
    raise UserError('No class has images with and without it in config.data.train and images with it in '
                    'config.data.test: choose splits that have.')
  train_features, test_features = measures.unit_rows(train[0]), measures.unit_rows(test[0])
  say(f'Training the SVMs of {measured.sum()} classes on {len(train_features)} images')

  def measure(column):
    known = test[1][:, column] != -1
    return _measure(train_features, train[1][:, column] == 1, test_features[known],
                    test[1][known, column] == 1, settings)

  # Threads, since liblinear releases the GIL. Without the filter it would warn for every fold of every cost.
  with warnings.catch_warnings(), threadpool_limits(1):
    warnings.simplefilter('ignore', ConvergenceWarning)
    with ThreadPoolExecutor(parallel.cores()) as threads:
      results = list(threads.map(measure, np.flatnonzero(measured)))
  by_class = dict(zip(names[measured].tolist(), results, strict=True))
  _tell(by_class, names[~measured].tolist(), settings, say)
  figures = {'map': float(np.mean([result.average_precision for result in results])),
             'map_area': float(np.mean([result.average_precision_area for result in results]))}
  figures |= {field: {name: getattr(result, field) for name, result in by_class.items()}
              for field in ('average_precision', 'average_precision_area', 'cost')}
  return figures | {'left_out': names[~measured].tolist(), 'num_train': len(train_features),
                    'num_test': len(test_features)}


def _measure(train_features, train_present, test_features, test_present, settings):
  cost, folds = _choose_cost(train_features, train_present, settings)
  trained = _svm(cost, settings).fit(train_features, train_present)
  precisions = average_precision(test_present, trained.decision_function(test_features))
  return _ClassResult(*precisions, cost, folds, trained.n_iter_ < settings.max_iterations)


def _choose_cost(features, present, settings):
  """The cost with the best cross-validated average precision, and the number of folds, 0 for the default."""
  folds = int(min(settings.folds, present.sum(), (~present).sum()))
  if folds < 2:
    return _DEFAULT_COST, 0
  validated = [cross_val_score(_svm(cost, settings), features, present, cv=folds,
                               scoring='average_precision').mean() for cost in settings.costs]
  return settings.costs[int(np.argmax(validated))], folds


def _svm(cost, settings):
  # The primal has the same optimum as VISSL's dual and no random order, so threads do not change the result.
  return LinearSVC(C=cost, class_weight={True: 2, False: 1}, max_iter=settings.max_iterations,
                   dual=False)  # pyright: ignore[reportArgumentType]


def _tell(by_class, left_out, settings, say):
  """Reports deviations from the settings."""
  def named(chosen):
    return ', '.join(name for name, result in by_class.items() if chosen(result))
  if left_out:
    say(f'Left out, as they have nothing to learn from or nothing to find: {", ".join(left_out)}')
  if default := named(lambda result: not result.folds):
    say(f'The cost is {_DEFAULT_COST}, as one image alone has or lacks the class: {default}')
  if fewer := named(lambda result: 0 < result.folds < settings.folds):
    say(f'The cost is chosen by fewer folds than {settings.folds}, one for each image that has or lacks the '
        f'class: {fewer}')
  if unconverged := sum(not result.converged for result in by_class.values()):
    say(f'{unconverged} SVMs did not converge in {settings.max_iterations} iterations: raise '
        'config.svm.max_iterations.')
