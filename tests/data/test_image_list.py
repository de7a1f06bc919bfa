"""Images that a list names."""
import os

import numpy as np
import pytest

from conic_jax.data import image_list, mapped
from conic_jax.data.image_list import ImageList
from conic_jax.errors import UserError

NAMES = ('a/1.jpg', 'b, c.jpg', 'd e.png', 'ü.jpg')


@pytest.fixture
def folder(tmp_path):
  for name in NAMES:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(name.encode())
  return tmp_path


def opened(folder, text, name='list.csv', **options):
  (folder / name).write_text(text, encoding='utf-8')
  return ImageList(str(folder / name), '', str(folder / 'cache'), **options)


@pytest.mark.parametrize(('text', 'name', 'options', 'classes'), [
  ('\n'.join(NAMES), 'paths.txt', {}, ()), ('\r\n\r\n'.join(NAMES) + '\r\n', 'paths.txt', {}, ()),
  ('a/1.jpg\n"b, c.jpg"\nd e.png\nü.jpg\n', 'list.csv', {}, ()),
  ('\ufeffpath,label\na/1.jpg,dog\n"b, c.jpg",cat\nd e.png,\nü.jpg,dog\n', 'list.csv', {}, ('cat', 'dog')),
  ('a/1.jpg,dog\n"b, c.jpg",cat\n\nd e.png,\nü.jpg,dog\n', 'list.csv', {}, ('cat', 'dog')),
  ('n\tlabel\tfile_name\n0\t1\ta/1.jpg\n1\t0\tb, c.jpg\n2\t-1\td e.png\n3\t1\tü.jpg\n', 'list.tsv', {},
   ('0', '1')),
  ('kind,label,it\ndog,1,a/1.jpg\ncat,0,"b, c.jpg"\n,2,d e.png\ndog,1,ü.jpg\n', 'list.csv',
   {'image': 'it', 'label': 'kind'}, ('cat', 'dog')),
  ('path,label\na/1.jpg,dog\n"b, c.jpg",cat\nd e.png,\nü.jpg,dog\n', 'list.csv', {'label': 'none'}, ())])
def test_paths_and_labels(folder, text, name, options, classes):
  source = opened(folder, text, name, **options)
  images, labels = source.read(np.array([3, 0, 1, 2]))
  assert images == [NAMES[id].encode() for id in (3, 0, 1, 2)]
  expected = [1, 1, 0, -1] if classes else [-1] * 4
  np.testing.assert_array_equal(labels, expected)
  np.testing.assert_array_equal(source.labels()[[3, 0, 1, 2]], expected)
  assert source.class_names == classes
  assert source.name(1) == f'{folder}/b, c.jpg'
  assert list(source.inventory()) == [[name, len(name.encode()), 'bytes'] for name in NAMES]


def test_a_split_is_the_name_of_a_list_in_the_folder(folder):
  (folder / 'train.csv').write_text('a/1.jpg,0\n')
  (folder / 'val.txt').write_text(str(folder / 'd e.png'))
  cache = str(folder / 'cache')
  assert ImageList(str(folder), 'train', cache).read(np.array([0]))[0] == [b'a/1.jpg']
  assert ImageList(str(folder), 'val.txt', cache).read(np.array([0]))[0] == [b'd e.png']
  assert ImageList(str(folder), 'val', cache).num_images == 1
  (folder / 'val.csv').write_text('')
  for location, split, told in ((folder, 'val', r"several lists of the split, .*val\.csv"),
                                (folder, 'test', r"has no list 'test'"), (folder, '', 'is a folder'),
                                (folder / 'train.csv', 'train', r"has no list 'train'"),
                                ('', '', r'set config\.data\.dir'),
                                (folder / 'x.csv', '', r'x\.csv'), (folder, 'val.csv', 'names no image')):
    with pytest.raises(UserError, match=told):
      ImageList(str(location), split, cache)


@pytest.mark.parametrize(('text', 'name', 'options', 'told'), [
  ('a/1.jpg\nno.jpg\nnot.jpg\n', 'paths.txt', {}, r'names 2 files that are missing \(no\.jpg, not\.jpg\)'),
  ('a/1.jpg,1\n', 'paths.txt', {}, r'a list with labels must end in \.csv'),
  ('path,label\na/1.jpg,3\nd e.png,dog\n', 'list.csv', {}, r"unlike types, 3 in .*list\.csv and 'dog'"),
  ('a/1.jpg\nd e.png\na/1.jpg\n', 'paths.txt', {}, r'names a/1\.jpg more than once'),
  ('a/1.jpg,1\nb, c.jpg,2\n', 'list.csv', {}, r'Line 2 .* has 3 fields where the first has 2'),
  ('a/1.jpg,1,2\n', 'list.csv', {}, r'has 3 columns: begin it with a line that names them'),
  ('label,nothing\n1,a\n', 'list.csv', {'label': 'label'}, r'has no column of paths, only label, nothing'),
  ('path,label\na/1.jpg,1\n', 'list.csv', {'image': 'it'},
   r"config\.data\.image is 'it', which the first line")])
def test_errors_name_the_remedy(folder, text, name, options, told):
  with pytest.raises(UserError, match=told):
    opened(folder, text, name, **options)


def test_only_equal_paths_are_the_same_image(folder, monkeypatch):
  monkeypatch.setattr(image_list, 'hash', lambda path: 7, raising=False)
  monkeypatch.setattr(mapped.blocks, '__defaults__', (3,))
  assert opened(folder, '\n'.join(NAMES), 'paths.txt').num_images == 4
  with pytest.raises(UserError, match='more than once'):
    opened(folder, '\n'.join((*NAMES, 'a/1.jpg')), 'paths.txt')


def test_a_changed_list_is_read_anew_and_a_file_that_goes_away_is_nothing(folder):
  opened(folder, 'a/1.jpg\nd e.png\n', 'paths.txt')
  source = opened(folder, 'd e.png\na/1.jpg\nü.jpg', 'paths.txt')
  os.remove(folder / 'a/1.jpg')
  assert source.read(np.arange(3))[0] == [b'd e.png', b'', 'ü.jpg'.encode()]


def test_names_of_any_bytes(folder):
  name = os.fsdecode(b'\xff.jpg')
  (folder / name).write_bytes(b'content')
  (folder / 'paths.txt').write_bytes(os.fsencode(name))
  source = ImageList(str(folder / 'paths.txt'), '', str(folder / 'cache'))
  assert source.read(np.array([0]))[0] == [b'content']
