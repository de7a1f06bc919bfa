import numpy as np
import pytest
from pictures import check_picture

from conic_jax.errors import UserError
from conic_jax.visualise import confusion, confusion_picture


def texts(axis):
  return [text.get_text() for text in axis.texts]


def test_few_classes_are_named_and_counted(figures, tmp_path):
  counts = np.array([[6, 2, 0], [0, 3, 1], [0, 0, 0]])
  confusion_picture(counts, ['cat', 'dog', 'a name that is much longer than the others'], tmp_path / 'c.png')
  axis = figures[0].axes[0]
  np.testing.assert_allclose(axis.images[0].get_array(), [[0.75, 0.25, 0], [0, 0.75, 0.25], [0, 0, 0]])
  assert texts(axis) == ['6', '2', '3', '1']
  assert [label.get_text() for label in axis.get_yticklabels()] == ['cat', 'dog', 'a name that is much lon…']
  assert axis.get_title(loc='left') == '75.0% of 12 images are right'
  check_picture(tmp_path / 'c.png')


@pytest.mark.parametrize(('classes', 'cells'), [(30, 30), (300, 150)])
def test_of_many_classes_the_most_confused_are_listed(figures, tmp_path, classes, cells):
  counts = 9 * np.eye(classes, dtype=int)
  counts[5, 7], counts[20, 3] = 3, 1
  confusion_picture(counts, [f'n{i}' for i in range(classes)], tmp_path / 'c.png')
  matrix, pairs, _ = figures[0].axes
  shares = np.asarray(matrix.images[0].get_array())
  block = classes // cells
  assert shares.shape == (cells, cells)
  assert shares[5 // block, 7 // block] == 0.25
  assert shares[20 // block, 3 // block] == 0.1
  assert not len(matrix.get_xticks())
  assert texts(pairs) == ['n5 → n7', '3 of 12', 'n20 → n3', '1 of 10']


@pytest.mark.parametrize('classes', [3, 30])
def test_names_are_no_mathematics(figures, tmp_path, classes):
  counts = np.ones((classes, classes), int)
  confusion_picture(counts, classes * ['a$x_{$'], tmp_path / 'c.png')
  axis = figures[0].axes[int(classes == 30)]
  names = axis.get_yticklabels() if classes == 3 else axis.texts
  assert 'a$x_{$' in names[0].get_text()


def test_pairs_are_ordered_by_images():
  counts = np.array([[99, 2, 5], [5, 0, 0], [0, 1, 7]])
  assert confusion.most_confused(counts, 3) == [(0, 2), (1, 0), (0, 1)]
  assert confusion.most_confused(np.eye(3, dtype=int), 3) == []


@pytest.mark.parametrize('classes', [1, 3, 21, 1000])
def test_without_a_single_image_the_picture_is_empty(figures, tmp_path, classes):
  confusion_picture(np.zeros((classes, classes), int), [str(i) for i in range(classes)], tmp_path / 'c.png')
  assert figures[0].axes[0].get_title(loc='left') == '0.0% of 0 images are right'
  assert not any(texts(axis) for axis in figures[0].axes)


def test_no_class_is_refused(tmp_path):
  with pytest.raises(UserError, match='no classes'):
    confusion_picture(np.zeros((0, 0), int), [], tmp_path / 'c.png')
