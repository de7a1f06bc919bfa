import os

import numpy as np
import pytest

from conic_jax.data import files
from conic_jax.data.folder import Folder
from conic_jax.errors import UserError


def fill(root, *paths):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(path.encode())


@pytest.mark.parametrize(('paths', 'expected', 'classes'), [
    (['b.jpg', 'a.PNG', 'c.txt', '.hidden.jpg', '.git/d.jpg'], ['a.PNG', 'b.jpg'], ()),
    (['x/1.jpeg', 'x/2.gif', 'y/1.webp', 'z/note.txt'], ['x/1.jpeg', 'x/2.gif', 'y/1.webp'],
     ('x', 'y', 'z')),
    (['x/1.bmp', 'y/1.bmp', '0.bmp'], ['0.bmp', 'x/1.bmp', 'y/1.bmp'], ()),
    (['x/y/1.Jpg', 'x/z/1.jpg'], ['x/y/1.Jpg', 'x/z/1.jpg'], ()),
    (['only/1.jpg', 'only/2.jpg'], ['only/1.jpg', 'only/2.jpg'], ())])
@pytest.mark.parametrize('remote', [False, True])
def test_what_is_found_and_what_is_a_class(tmp_path, monkeypatch, paths, expected, classes, remote):
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  fill(tmp_path, *paths)
  source = Folder(str(tmp_path), '')
  images, labels = source.read(np.arange(source.num_images)[::-1])
  assert images == [path.encode() for path in expected[::-1]]
  assert source.class_names == classes
  assert source.num_classes == len(classes)
  wanted = [classes.index(path.split('/')[0]) if classes else -1 for path in expected[::-1]]
  np.testing.assert_array_equal(labels, wanted)
  assert [source.name(i) for i in range(len(expected))] == [f'{tmp_path}/{p}' for p in expected]


def test_split_is_a_subfolder_and_labels_agree_between_splits(tmp_path):
  fill(tmp_path, 'train/a/1.jpg', 'train/b/1.jpg', 'train/c/1.jpg', 'test/a/1.jpg', 'test/c/1.jpg')
  (tmp_path / 'test/b').mkdir()
  train, test = (Folder(str(tmp_path), split) for split in ('train', 'test'))
  assert train.class_names == test.class_names
  np.testing.assert_array_equal(test.read(np.arange(2))[1], [0, 2])


def test_errors(tmp_path):
  fill(tmp_path, 'a/note.txt')
  with pytest.raises(UserError, match=r'no images .*/a.*\.jpg \.jpeg \.png \.webp \.bmp \.gif'):
    Folder(str(tmp_path), 'a')
  with pytest.raises(UserError, match='cannot be listed'):
    Folder(str(tmp_path), 'absent')
  with pytest.raises(UserError, match=r'config\.data\.dir'):
    Folder('', '')


def test_a_file_that_goes_away_reads_as_nothing(tmp_path):
  fill(tmp_path, 'a.jpg', 'b.jpg')
  source = Folder(str(tmp_path), '')
  os.remove(tmp_path / 'a.jpg')
  assert source.read(np.arange(2))[0] == [b'', b'b.jpg']
