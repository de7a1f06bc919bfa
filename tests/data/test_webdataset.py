"""Images in tars: which are read, under which ids and labels, and what is refused."""
import io
import os
import tarfile

import numpy as np
import pytest
from containers import write_tar

from conic_jax.data import webdataset
from conic_jax.data.webdataset import WebDataset
from conic_jax.errors import UserError


def sample(number, label=None, content=None, ending='jpg'):
  content = f'image {number}'.encode() if content is None else content
  members = [(f'{number:03d}.{ending}', content)]
  return members if label is None else [*members, (f'{number:03d}.cls', str(label).encode())]


def fill(root, shards, split='train'):
  """Writes a tar for each list of samples."""
  return [write_tar(root / f'{split}-{shard:03d}.tar', [member for part in samples for member in part])
          for shard, samples in enumerate(shards)]


@pytest.fixture
def tars(tmp_path):
  return fill(tmp_path / 'tars', [[sample(i, i % 3) for i in range(5 * k, 5 * k + 5)] for k in range(4)])


def opened(location, tmp_path, split='', **options):
  return WebDataset(str(location), split, str(tmp_path / 'cache'), **options)


@pytest.mark.parametrize('location', ['tars', 'tars/train-{000..003}.tar', 'tars/train-*.tar',
                                      'tars/train-{000,001,002,003}.tar', 'tars/{train,train}-00{0..3}.tar'])
def test_every_image_has_one_id_in_the_order_of_the_tars(tars, tmp_path, location):
  source = opened(tmp_path / location, tmp_path)
  ids = np.random.default_rng(0).permutation(20)
  images, labels = source.read(ids)
  assert images == [f'image {id}'.encode() for id in ids]
  np.testing.assert_array_equal(labels, ids % 3)
  assert labels.dtype == np.int32
  np.testing.assert_array_equal(source.labels(), np.arange(20) % 3)
  assert source.class_names == ('0', '1', '2')
  assert source.name(7) == f'{tmp_path}/tars/train-001.tar/007.jpg'
  assert source.description == '4 tar files, 3 classes'
  assert source.read(np.arange(0))[0] == []


def test_a_pattern_has_its_own_order(tars, tmp_path):
  source = opened(tmp_path / 'tars/train-{003,001}.tar', tmp_path)
  assert source.read(np.array([0, 5]))[0] == [b'image 15', b'image 5']


@pytest.mark.parametrize(('split', 'first'), [('train', b'image 0'), ('val', b'image 70'),
                                              ('val-{000..001}.tar', b'image 70'),
                                              ('val-001.tar', b'image 71')])
def test_a_split_is_a_part_of_the_names_or_a_pattern(tars, tmp_path, split, first):
  fill(tmp_path / 'tars', [[sample(70, 1)], [sample(71, 2)]], 'val')
  assert opened(tmp_path / 'tars', tmp_path, split).read(np.array([0]))[0] == [first]


def test_a_split_is_a_subfolder_first(tmp_path):
  fill(tmp_path / 'tars' / 'val', [[sample(1)]], 'from-train')
  fill(tmp_path / 'tars' / 'train', [[sample(2)]], 'some')
  assert opened(tmp_path / 'tars', tmp_path, 'train').read(np.array([0]))[0] == [b'image 2']


def test_class_names_beside_the_tars_or_above(tmp_path):
  fill(tmp_path / 'tars' / 'train', [[sample(0, 2), sample(1, 0)]])
  (tmp_path / 'tars' / 'classnames.txt').write_text('ant\nbee\ncat\n')
  assert opened(tmp_path / 'tars', tmp_path).class_names == ('ant', 'bee', 'cat')
  (tmp_path / 'tars' / 'classnames.txt').write_text('ant\nbee\n')
  with pytest.raises(UserError, match=r'has the label 2, and there are 2 class names'):
    opened(tmp_path / 'tars', tmp_path)


def test_labels_may_be_names_and_may_be_missing(tmp_path):
  fill(tmp_path / 'tars', [[sample(0, 'dog'), sample(1)],
                           [sample(2, 'cat'), sample(3, -1), sample(4, 'dog')]])
  source = opened(tmp_path / 'tars', tmp_path)
  assert source.class_names == ('cat', 'dog')
  np.testing.assert_array_equal(source.labels(), [1, -1, 0, -1, 1])
  assert opened(tmp_path / 'tars', tmp_path, label='none').num_classes == 0
  fill(tmp_path / 'mixed', [[sample(0, 'dog')], [sample(1, 7)]])
  with pytest.raises(UserError, match=r"unlike types, 'dog' in .*train-000\.tar and 7 in .*train-001\.tar"):
    opened(tmp_path / 'mixed', tmp_path)


def test_what_is_no_image_is_left_out(tmp_path):
  path = write_tar(tmp_path / 'tars' / 'a.tar', [
    ('._000.jpg', b'mac'), ('./x/000.JPG', b'one'), ('./x/000.json', b'{}'), ('x/note.txt', b'text'),
    ('x/.hidden.png', b'no'), ('y/000.png', b'two'), ('long/' + 'z' * 200 + '.webp', b'three'),
    ('ä\udcff.gif', b'four')])
  with tarfile.open(path, 'a') as tar:
    link = tarfile.TarInfo('z/link.jpg')
    link.type, link.linkname = tarfile.LNKTYPE, 'y/000.png'
    tar.addfile(link)
    folder = tarfile.TarInfo('folder.jpg')
    folder.type = tarfile.DIRTYPE
    tar.addfile(folder)
  source = opened(path, tmp_path)
  assert source.read(np.arange(4))[0] == [b'one', b'two', b'three', b'four']
  assert source.description == '1 tar files, no classes; left out: 1 links'
  assert source.name(3).endswith('/ä\udcff.gif')


def test_one_of_several_images_of_a_sample(tmp_path):
  write_tar(tmp_path / 'a.tar', [('0.left.jpg', b'l'), ('0.right.jpg', b'r'), ('0.cls', b'1')])
  with pytest.raises(UserError, match=r'several images, 0\.left\.jpg and 0\.right\.jpg: set config'):
    opened(tmp_path / 'a.tar', tmp_path)
  assert opened(tmp_path / 'a.tar', tmp_path, image='right.jpg').read(np.array([0]))[0] == [b'r']


@pytest.mark.parametrize('cut', [100, 600, 1536, 2300, 5120, 10240, 10752, 11263])
def test_a_tar_that_is_cut_short_is_refused(tars, tmp_path, cut):
  os.truncate(tars[2], cut)
  with pytest.raises(UserError, match=r'train-002\.tar .*cut short'):
    opened(tmp_path / 'tars', tmp_path)


def test_other_errors_name_the_remedy(tars, tmp_path):
  for location, told in (('', r'Set config\.data\.dir'), (tmp_path / 'absent', 'cannot be listed'),
                         (tmp_path / 'absent-{0..9}.tar', r'absent-\{0\.\.9\}\.tar matches no file'),
                         (tmp_path / 'tars/x*.tar', 'matches no file'),
                         (tmp_path / 'tars/train-{000..006}.tar',
                          r'3 of 7 tar files are missing \(.*train-004\.tar')):
    with pytest.raises(UserError, match=told):
      opened(location, tmp_path)
  with pytest.raises(UserError, match=r"None of the 4 tar files .* is of the split 'test' \(train-000\.tar"):
    opened(tmp_path / 'tars', tmp_path, 'test')
  with pytest.raises(UserError, match=r"No sample .* ends in 'txt'"):
    opened(tmp_path / 'tars', tmp_path, label='txt')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=r'There are no tar files below'):
    opened(tmp_path / 'empty', tmp_path)
  write_tar(tmp_path / 'texts' / 'a.tar', [('a.txt', b'')])
  with pytest.raises(UserError, match=r'hold no image: files that end in \.jpg'):
    opened(tmp_path / 'texts', tmp_path)
  (tmp_path / 'zipped.tar').write_bytes(b'\x1f\x8b' + bytes(1000))
  with pytest.raises(UserError, match=r'cannot be read as a tar .* compressed'):
    opened(tmp_path / 'zipped.tar', tmp_path)
  write_tar(tmp_path / 'apart.tar', [('a/0.jpg', b''), ('b/0.cls', b'1')])
  with pytest.raises(UserError, match=r'a/0\.jpg has no label and .*b/0\.cls no image'):
    opened(tmp_path / 'apart.tar', tmp_path)


def test_the_index_is_kept_and_made_again_for_other_files(tars, tmp_path, monkeypatch):
  opened(tmp_path / 'tars', tmp_path)
  indexed = []
  index_tar = webdataset.index_tar
  monkeypatch.setattr(webdataset, 'index_tar',
                      lambda path, *asked: indexed.append(path) or index_tar(path, *asked))
  assert opened(tmp_path / 'tars', tmp_path).num_images == 20
  assert indexed == []
  write_tar(tars[1], [member for i in range(3) for member in sample(90 + i, 0)])
  source = opened(tmp_path / 'tars', tmp_path)
  assert source.read(np.array([5, 8]))[0] == [b'image 90', b'image 10']
  assert len(indexed) == 4
  assert len(list((tmp_path / 'cache').iterdir())) == 1


def test_a_tar_that_goes_away_reads_as_nothing(tars, tmp_path):
  source = opened(tmp_path / 'tars', tmp_path)
  os.remove(tars[0])
  os.truncate(tars[1], 600)
  images, labels = source.read(np.array([4, 5, 6, 10]))
  assert images == [b'', b'image 5', b'', b'image 10']
  np.testing.assert_array_equal(labels, [1, 2, 0, 1])


def test_the_inventory_names_the_tars(tars, tmp_path):
  assert list(opened(tmp_path / 'tars', tmp_path).inventory()) == [
    ['4 tar files', 20, 'images'], *([f'train-00{k}.tar with 5 images', 20480, 'bytes'] for k in range(4))]


@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_format_have_the_members_that_the_library_finds(tmp_path, form):
  path = tmp_path / 'a.tar'
  names = ['a.jpg', 'b/c.jpg', 'x' * 96 + '.jpg', 'y' * 90 + '/' + 'z' * 90 + '.jpg', 'ü.jpg', 'd.png']
  with tarfile.open(path, 'w', format=form, encoding='utf-8') as tar:
    for number, name in enumerate(names):
      info = tarfile.TarInfo(name)
      info.size, info.mtime = number * 700, 1e9 + 0.5
      info.uid = 0 if form == tarfile.USTAR_FORMAT else 2 ** 24
      tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
  index = webdataset.index_tar(str(path), '', 'cls')
  with tarfile.open(path) as tar:
    members = tar.getmembers()
  assert index.names == [member.name for member in members] == names
  assert index.places == [(member.offset_data, member.size) for member in members]


def test_a_header_that_was_changed_ends_the_tar(tars, tmp_path):
  content = bytearray(tars[0].read_bytes())
  content[2048] ^= 1  # The first letter of the second sample's name.
  tars[0].write_bytes(content)
  with pytest.raises(UserError, match=r'train-000\.tar is cut short or damaged: at byte 2,048'):
    opened(tmp_path / 'tars', tmp_path)
