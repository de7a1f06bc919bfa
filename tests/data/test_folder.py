import mmap
import os

import numpy as np
import pytest

from conic_jax.data import files, mapped
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


@pytest.mark.parametrize(('paths', 'description'), [
  (['a/1.jpg', 'b/1.jpg'], '2 classes'), (['1.jpg', '2.jpg'], 'no classes'), (['a/1.jpg'], 'no classes'),
  (['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'stray.jpg'],
   "no classes, because 'stray.jpg' lies beside the class folders"),
  (['a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg', 'a/sub/x.jpg', 'b/sub/x.jpg'],
   "no classes, because 'a/sub/x.jpg' lies deeper than the class folders, as do 1 more"),
  (['2020/may/1.jpg', '2020/june/1.jpg', 'a/1.jpg'], 'no classes')])
def test_what_made_a_folder_unlabelled_is_named(tmp_path, paths, description):
  fill(tmp_path, *paths)
  source = Folder(str(tmp_path), '')
  assert source.description == description
  assert bool(source.class_names) == (description == '2 classes')


@pytest.mark.parametrize('name', ['@eaDir', '__MACOSX', '#recycle', 'lost+found', '.Trash', '$RECYCLE.BIN'])
def test_folders_of_other_programs_are_left_out(tmp_path, name):
  fill(tmp_path, 'a/1.jpg', 'b/1.jpg', f'{name}/1.jpg', f'a/{name}/1.jpg', f'{name}/b/1.jpg')
  source = Folder(str(tmp_path), '')
  assert source.class_names == ('a', 'b')
  assert source.num_images == 2


def test_names_that_look_alike_are_one_class(tmp_path):
  composed, decomposed = 'caf\u00e9', 'cafe\u0301'
  fill(tmp_path, f'train/{composed}/1.jpg', f'train/{decomposed}/2.jpg', 'train/bar/1.jpg',
       f'test/{decomposed}/1.jpg', 'test/bar/1.jpg')
  train, test = (Folder(str(tmp_path), split) for split in ('train', 'test'))
  assert train.class_names == test.class_names == ('bar', composed)
  np.testing.assert_array_equal(train.labels(), [0, 1, 1])
  np.testing.assert_array_equal(test.labels(), [0, 1])
  assert train.read(np.arange(3))[0][1].decode().startswith('train/cafe')


def test_names_of_any_bytes_are_read_and_can_be_written(tmp_path):
  fill(tmp_path, 'a/1.jpg')
  for name in (b'b\xff/1.jpg', b'b\xff/\xe9.jpg'):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
      file.write(b'bytes')
  source = Folder(str(tmp_path), '')
  assert source.read(np.arange(3))[0] == [b'a/1.jpg', b'bytes', b'bytes']
  np.testing.assert_array_equal(source.labels(), [0, 1, 1])
  assert ''.join(source.class_names).encode() == b'ab\\udcff'


def test_a_loop_of_links_is_left_out_and_named(tmp_path):
  fill(tmp_path, 'a/1.jpg', 'b/1.jpg', 'b/c/note.txt')
  (tmp_path / 'b' / 'again').symlink_to(tmp_path)
  (tmp_path / 'a' / 'top').symlink_to(tmp_path.parent)
  (tmp_path / 'b' / 'c' / 'up').symlink_to(tmp_path / 'b')
  (tmp_path / 'linked').symlink_to(tmp_path / 'a')
  source = Folder(str(tmp_path), '')
  assert [source.name(i) for i in range(3)] == [f'{tmp_path}/{path}' for path in ('a/1.jpg', 'b/1.jpg',
                                                                                 'linked/1.jpg')]
  assert source.class_names == ('a', 'b', 'linked')
  assert source.description.startswith('3 classes; left out: ')
  assert sorted(source.description.removeprefix('3 classes; left out: ').split(', ')) == [
    f'{link} (a link to a folder that it is in)' for link in ('a/top', 'b/again', 'b/c/up', 'linked/top')]


def test_a_subfolder_that_cannot_be_read_is_left_out_and_named(tmp_path, monkeypatch):
  fill(tmp_path, 'a/1.jpg', 'b/1.jpg', 'shut/1.jpg')
  scandir = os.scandir
  def denied(path):
    if str(path).rstrip('/').endswith('shut'):
      raise PermissionError(13, 'Permission denied')
    return scandir(path)
  monkeypatch.setattr(os, 'scandir', denied)
  source = Folder(str(tmp_path), '')
  assert source.num_images == 2
  assert source.description == '3 classes; left out: shut (Permission denied)'
  with pytest.raises(UserError, match=r'shut cannot be listed \(Permission denied\)'):
    Folder(str(tmp_path), 'shut')


@pytest.mark.parametrize('scheme', ['s3', 'hdfs', 'nothing'])
def test_a_store_that_cannot_be_read_is_not_an_empty_folder(scheme):
  with pytest.raises(UserError, match=f'TensorFlow reads no {scheme}:// here'):
    Folder(f'{scheme}://bucket/images', '')


def test_paths_are_found_in_sorted_order_and_held_in_a_file_where_they_are_many(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  for _ in range(300):
    parts = [''.join(rng.choice(list('aA!-0.~é'), rng.integers(1, 3))) for _ in range(rng.integers(1, 5))]
    path = tmp_path / 'images' / '/'.join(f'x{part}' for part in parts)
    if not any(above.is_file() for above in path.parents) and not path.is_dir():
      fill(path.parent, f'{path.name}.jpg')
  expected = sorted(path.relative_to(tmp_path / 'images').as_posix()
                    for path in (tmp_path / 'images').rglob('*.jpg') if path.is_file())
  monkeypatch.setattr(mapped.temporary, '__defaults__', (100,))
  monkeypatch.setattr(mapped.blocks, '__defaults__', (7,))
  source = Folder(str(tmp_path / 'images'), '')
  assert len(expected) > 150
  assert list(source.paths()) == expected
  assert isinstance(source._table.parts['text'].base.obj, mmap.mmap)
  absent = ['a', 'x!/b', '~']
  whole = source.with_absent(absent)
  assert list(whole.paths()) == sorted([*expected, *absent])
  assert {whole.name(id).removeprefix(f'{tmp_path}/images/') for id in whole.absent} == set(absent)


def test_a_folder_of_tars_is_told_what_reads_it(tmp_path):
  fill(tmp_path, 'train/0.tar', 'train/1.tar', 'train/notes.txt')
  with pytest.raises(UserError, match=r"It has \.tar files: for those set config\.data\.name to 'wds'\."):
    Folder(str(tmp_path), '')
