import dataclasses
import os
import re
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containers import write_tar
from ml_collections import ConfigDict
from PIL import Image

from conic_jax import embed
from conic_jax.data import folder, pipeline
from conic_jax.errors import UserError
from conic_jax.evals import embeddings
from conic_jax.evals.embeddings import Embeddings, nearest, read, write
from conic_jax.evals.encoders import open_encoder
from conic_jax.export import targets
from conic_jax.views import IMAGENET_MEAN, IMAGENET_STD

NETWORK = ConfigDict({'name': 'resnet18', 'blocks': (1,), 'stem': 'cifar', 'width': 0.125,
                      'zero_gamma': False, 'output_stride': 32})
PATHS = ('a/1.png', 'a/2.png', 'b/c/0.png', 'b/c/3.png', 'd.png')


@pytest.fixture(scope='module')
def encoder():
  return open_encoder('random', NETWORK)


@pytest.fixture(scope='module')
def weights(encoder, tmp_path_factory):
  """The encoder as a file of weights."""
  out = tmp_path_factory.mktemp('weights') / 'tiny.safetensors'
  targets.write('safetensors', encoder.network, encoder.variables, 'card', out)
  return out


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Five images of 20×16 pixels, and one that cannot be decoded in their middle."""
  root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
  for path in PATHS:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(root / path)
  (root / 'b/broken.png').write_bytes(b'broken')
  return root


@pytest.fixture(scope='module')
def expected(images, encoder):
  """The features of the five central crops, one image after the other."""
  pixels = np.stack([np.asarray(Image.open(images / path))[2:18] for path in PATHS])
  pixels = ((pixels / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)
  return np.asarray(jax.jit(encoder.encode)(encoder.variables, pixels))


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs the command; gives what it exits with and what it prints."""
  def execute(*arguments):
    monkeypatch.setattr(sys, 'argv', ['embed', *map(str, arguments)])
    try:
      embed.command()
    except SystemExit as exit:
      return exit.code
    return capsys.readouterr().out
  return execute


def columns(file):
  """ids, paths, vectors and metadata of a file, by its own library."""
  if file.suffix == '.npz':
    arrays = np.load(file, allow_pickle=False)
    return arrays['ids'], arrays['paths'].tolist(), arrays['vectors'], str(arrays['metadata'])
  table = pq.read_table(file)
  assert str(table.schema.field('vector').type).startswith('fixed_size_list<element: float>[')
  vectors = np.array(table['vector'].to_pylist(), np.float32)
  return table['id'].to_numpy(), table['path'].to_pylist(), vectors, str(table.schema.metadata)


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [8, 16])
def test_every_image_is_encoded_once(encoder, images, expected, mesh, batch_size):
  if mesh.size == 1:
    batch_size //= 4  # 2 and 4: the last of the batches is short.
  source = folder.Folder(str(images), '')
  undecodable = pipeline.UndecodableImages(source)
  blocks = list(embeddings.embed(encoder, source, str(images), size=16, resize=16, batch_size=batch_size,
                                 mesh=mesh, undecodable=undecodable))
  np.testing.assert_array_equal(np.concatenate([block.ids for block in blocks]), [0, 1, 3, 4, 5])
  assert [path for block in blocks for path in block.paths] == list(PATHS)
  vectors = np.concatenate([block.vectors for block in blocks])
  np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
  assert undecodable.names() == [f'{images}/b/broken.png']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['images.tar', 'images-*.parquet', 'list.txt'])
def test_images_in_files_have_the_features_of_those_in_a_folder(
    command, weights, images, expected, tmp_path, monkeypatch, name):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  paths = [images / path for path in PATHS]
  write_tar(tmp_path / 'images.tar', [(f'{id}.png', path.read_bytes()) for id, path in enumerate(paths)])
  pq.write_table(pa.table({'image': [path.read_bytes() for path in paths]}), tmp_path / 'images-0.parquet')
  (tmp_path / 'list.txt').write_text('\n'.join(map(str, paths)))
  out = tmp_path / 'features.npz'
  command(weights, tmp_path / name, f'--out={out}', '--size=16', '--resize=16', '--batch_size=8')
  _, written, vectors, _ = columns(out)
  np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
  assert written[1] == {'images.tar': 'images.tar/1.png', 'images-*.parquet': 'images-0.parquet:1',
                        'list.txt': os.path.relpath(paths[1], tmp_path)}[name]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['new/features.parquet', 'features.npz'])
def test_the_command_writes_and_searches(command, weights, images, expected, tmp_path, name):
  out, sheet = tmp_path / name, tmp_path / 'sheet.png'
  sizes = ('--size=16', '--resize=16', '--batch_size=8')
  query = f'--neighbours={images / PATHS[3]}'
  printed = command(weights, images, f'--out={out}', *sizes, query, '-k2').splitlines()
  assert printed[0].startswith('1 images could not be decoded')
  assert printed[1] == f'5 vectors written to {out}'
  ids, paths, vectors, metadata = columns(out)
  np.testing.assert_array_equal(ids, [0, 1, 3, 4, 5])
  assert (ids.dtype, vectors.dtype, paths) == (np.int64, np.float32, list(PATHS))
  np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
  assert all(word in metadata for word in (str(weights), str(images), '16', '0.485 0.456 0.406'))
  assert os.listdir(out.parent) == [out.name]

  unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
  order = np.argsort(-unit @ unit[3])[:2]
  wanted = [f'{unit[i] @ unit[3]:7.4f}  {PATHS[i]}' for i in order]
  assert wanted[0] == f' 1.0000  {PATHS[3]}'
  assert printed[2:] == wanted
  # The file says at which size its query is to be encoded.
  printed = command(weights, out, query, '-k2', f'--sheet={sheet}').splitlines()
  assert printed == [*wanted, f'Picture: {sheet}']
  with Image.open(sheet) as picture:
    assert picture.size[0] > 100


def block(start, count, width=3):
  ids = np.arange(start, start + count)
  vectors = np.random.default_rng(start).normal(size=(count, width)).astype(np.float32)
  return Embeddings(ids, [f'{i}.png' for i in ids], vectors)


@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
def test_what_is_written_is_read(tmp_path, monkeypatch, suffix):
  monkeypatch.setattr(embeddings, '_ROWS', 10)
  blocks = [block(start, 4) for start in range(0, 24, 4)] + [block(24, 0), block(24, 1)]
  out = tmp_path / f'features{suffix}'
  assert write(iter(blocks), {'size': '8', 'encoder': 'é'}, out) == 25
  metadata, found = read(out)
  found = list(found)
  assert metadata == {'size': '8', 'encoder': 'é'}
  np.testing.assert_array_equal(np.concatenate([part.ids for part in found]), np.arange(25))
  assert [path for part in found for path in part.paths] == [f'{i}.png' for i in range(25)]
  np.testing.assert_array_equal(np.concatenate([part.vectors for part in found]),
                                np.concatenate([part.vectors for part in blocks]))
  if suffix == '.parquet':
    table = pq.ParquetFile(out)
    assert [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)] == [12, 12, 1]


@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
def test_an_interrupted_file_is_not_left(tmp_path, suffix):
  def interrupted():
    yield block(0, 5000)
    yield block(5000, 5000)
    assert os.listdir(tmp_path) == [f'.features{suffix}.part']
    raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    write(interrupted(), {}, tmp_path / f'features{suffix}')
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
def test_a_name_that_is_not_utf8_is_written(command, weights, tmp_path, suffix):
  root, out = tmp_path / os.fsdecode(b'with_\xe9'), tmp_path / f'features{suffix}'
  root.mkdir()
  Image.new('RGB', (16, 16)).save(root / os.fsdecode(b'caf\xe9.png'))
  (root / os.fsdecode(b'bro\xe9ken.png')).write_bytes(b'broken')
  printed = command(weights, root, f'--out={out}', '--size=16', '--batch_size=8')
  assert r'bro\udce9ken.png' in printed
  assert columns(out)[1] == [r'caf\udce9.png']
  assert read(out)[0]['images'].endswith(r'with_\udce9')
  query = root / os.fsdecode(b'caf\xe9.png')
  for images, sheet in ((root, 'of_folder.png'), (out, 'of_file.png')):
    command(weights, images, f'--neighbours={query}', f'--sheet={tmp_path / sheet}', '--size=16',
            '--batch_size=8')
    assert (tmp_path / sheet).stat().st_size > 1000


def write_array(file):
  with open(file, 'wb') as opened:
    np.save(opened, np.ones((2, 3)))


def write_arrays(file, paths, vectors):
  np.savez(file, ids=np.arange(2), paths=np.array(paths), vectors=vectors, metadata=np.array('{}'))


def write_table(file, vectors):
  pq.write_table(pa.table({'id': [0, 1], 'path': ['a', 'b'], 'vector': vectors}), file)


@pytest.mark.parametrize(('name', 'write_other'), [
  ('x.npy', write_array), ('x.npz', write_array),
  ('y.npz', lambda file: write_arrays(file, ['a'], np.ones((2, 3)))),
  ('z.npz', lambda file: write_arrays(file, ['a', 'b'], np.ones(2))),
  ('x.parquet', lambda file: write_table(file, [[1., 2.], [3., 4.]])),
  ('y.parquet', lambda file: write_table(file, [1., 2.])),
  ('z.parquet', lambda file: write_table(file, pa.array([[1., 2.], None], pa.list_(pa.float32(), 2)))),
  ('x.txt', lambda file: file.write_text('text'))])
def test_another_file_is_told(tmp_path, name, write_other):
  write_other(tmp_path / name)
  with pytest.raises(UserError, match=f'{name} is no file of embeddings'):
    list(read(tmp_path / name)[1])


@pytest.mark.parametrize('suffix', embeddings.SUFFIXES)
@pytest.mark.parametrize('place', [0.1, 0.5])
def test_damage_is_told(tmp_path, suffix, place):
  out = tmp_path / f'features{suffix}'
  write(iter([block(0, 5000)]), {}, out)
  content = bytearray(out.read_bytes())
  content[int(place * len(content))] ^= 0xff
  out.write_bytes(content)
  with pytest.raises(UserError, match='or it is damaged'):
    list(read(out)[1])


def test_a_failure_of_the_images_is_not_one_of_the_file(tmp_path):
  def failing():
    yield block(0, 1)
    raise OSError('the cable is out')
  with pytest.raises(UserError, match=r'^The images cannot be read \(the cable is out\)'):
    write(failing(), {}, tmp_path / 'features.parquet')
  assert not os.listdir(tmp_path)


def test_the_fingerprint_is_of_all_weights(encoder):
  first = embeddings.fingerprint(encoder)
  assert re.fullmatch('[0-9a-f]{16}', first)
  assert first == embeddings.fingerprint(open_encoder('random', NETWORK))
  leaves, tree = jax.tree.flatten(encoder.variables)
  for place in (0, len(leaves) - 1):
    changed = [leaf + (i == place) for i, leaf in enumerate(leaves)]
    other = dataclasses.replace(encoder, variables=jax.tree.unflatten(tree, changed))
    assert embeddings.fingerprint(other) != first


def test_no_image_and_no_folder_are_told(tmp_path):
  with pytest.raises(UserError, match='None of the images can be decoded'):
    write(iter([block(0, 0)]), {}, tmp_path / 'features.parquet')
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(UserError, match=r'features\.npz cannot be written'):
    write(iter([block(0, 1)]), {}, tmp_path / 'file' / 'features.npz')
  assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('k', [1, 4, 99])
def test_nearest_equals_a_search_of_everything(k):
  blocks = [block(0, 7), block(7, 2), Embeddings(np.array([9]), ['same.png'], block(0, 7).vectors[2:3])]
  vectors = np.concatenate([part.vectors for part in blocks]).astype(np.float64)
  query = vectors[2].astype(np.float32)
  cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
  cosines[9] = cosines[2]
  order = np.argsort(-cosines, kind='stable')[:k]
  paths, similarities = nearest(query, iter(blocks), k)
  assert paths == ['same.png' if i == 9 else f'{i}.png' for i in order]
  assert paths[0] == '2.png'
  np.testing.assert_allclose(similarities, cosines[order], atol=1e-6)


@pytest.mark.parametrize(('arguments', 'message'), [
  (['{images}'], 'Nothing to do'),
  (['{images}', '--out=x.csv'], r'must end in \.parquet or \.npz'),
  (['{images}', '--out={weights}'], r'must end in'),
  (['{images}', '--out={there}'], 'is there already'),
  (['{there}', '--out=new.npz'], r'is a file: --out writes'),
  (['{there}', '--neighbours={image}'], 'is no file of embeddings'),
  (['{narrow}', '--neighbours={image}'], 'The vectors have 3 numbers and those of this encoder 8'),
  (['{other}', '--neighbours={image}'], r'are of other weights than .*that they are of \(runs/other\)'),
  (['{images}/none', '--out=new.npz'], 'There are no images below'),
  (['{images}', '--out=ftp://bucket/new.npz'], "--out: 'ftp://bucket/new.npz' is neither"),
  (['{images}', '--neighbours={image}', '--sheet=ftp://b/new.png'], "--sheet: 'ftp://b/new.png' is neither"),
  (['{images}', '--neighbours={image}', '--sheet=new.png', '-k101'], 'at most 100 images'),
  (['{images}', '--out=new.npz', '--size=16', '--resize=15'], '--size=16 is larger than --resize=15'),
  (['{images}', '--out=new.npz', '--resize=100'], '--size=224 is larger than --resize=100'),
  (['{narrow}', '--neighbours={images}/b/broken.png'], 'no such image, or it cannot be decoded'),
  (['{images}', '--size=16', '--batch_size=8', '--neighbours=none.png'], 'no such image'),
  (['{images}', '--out=new.npz', '--sheet=new.png'], '--sheet=new.png: it is a picture'),
  (['{images}', '--neighbours={image}', '--sheet=new.jpg'], '--sheet=new.jpg: it is a picture'),
  (['{narrow}', '--neighbours={image}', '-k', '0'], "'0' is no whole number above 0"),
  (['{images}', '--out=new.npz', '--batch_size=12'], '--batch_size 12 cannot be split over 8 devices')])
def test_mistakes_are_told(command, weights, images, tmp_path, monkeypatch, arguments, message):
  monkeypatch.chdir(tmp_path)
  there, narrow, other = (tmp_path / name for name in ('there.npz', 'narrow.parquet', 'other.npz'))
  np.savez(there, ids=np.arange(2))
  write(iter([block(0, 5)]), {'size': '16', 'resize': '16'}, narrow)
  write(iter([block(0, 5, width=8)]), {'encoder': 'runs/other', 'fingerprint': 16 * '0'}, other)
  names = {'images': images, 'weights': weights, 'there': there, 'narrow': narrow, 'other': other,
           'image': images / PATHS[0]}
  answer = command(weights, *(argument.format(**names) for argument in arguments))
  assert str(answer).startswith('conic_jax: ')
  assert re.search(message, answer)
  assert len(answer.splitlines()) == 1
  assert {path.name for path in tmp_path.iterdir()} == {'there.npz', 'narrow.parquet', 'other.npz'}


def test_a_folder_that_cannot_be_listed_is_told(command, weights, images, tmp_path, monkeypatch):
  def refused(root, skipped):
    raise PermissionError(13, 'Permission denied')
  monkeypatch.setattr(folder.files, 'walk', refused)
  answer = command(weights, images, f'--out={tmp_path}/new.npz')
  assert answer == f'conic_jax: The folder of images {images} cannot be listed (Permission denied).'


@pytest.mark.parametrize(('name', 'message'), [
  ('random', 'no random encoder'), ('none', "There is no encoder 'none'"), ('', "There is no encoder ''")])
def test_an_encoder_that_is_not_there_is_told(command, images, name, message):
  assert message in command(name, images, '--out=new.npz')


def test_a_sheet_without_its_images_is_told(command, weights, images, tmp_path):
  file = tmp_path / 'features.npz'
  write(iter([block(0, 1, width=8)]), {'size': '16', 'resize': '16', 'images': str(tmp_path / 'moved')},
        file)
  answer = command(weights, file, f'--neighbours={images / PATHS[0]}', f'--sheet={tmp_path}/sheet.png')
  assert 'are not in' in answer


def test_a_sheet_that_cannot_be_written_is_told_after_what_was_found(
    command, weights, images, tmp_path, capsys):
  file = tmp_path / 'features.npz'
  (tmp_path / '0.png').write_bytes((images / PATHS[0]).read_bytes())
  write(iter([block(0, 1, width=8)]), {'size': '16', 'resize': '16', 'images': str(tmp_path)}, file)
  answer = command(weights, file, f'--neighbours={images / PATHS[0]}', f'--sheet={file}/sheet.png')
  assert answer.startswith(f'conic_jax: --sheet={file}/sheet.png cannot be written (')
  assert len(answer.splitlines()) == 1
  assert capsys.readouterr().out.endswith('  0.png\n')
