"""The folders that experiments train and test on."""
import numpy as np
import pytest
from PIL import Image

from experiments import sets


@pytest.fixture
def source(tmp_path):
  """Twelve training and four test images of two classes."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 12), ('test', 4)):
    for name in ('one', 'two'):
      for index in range(count):
        path = tmp_path / 'source' / split / name / f'{split}{index:02d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
  return tmp_path / 'source'


def names(folder):
  return {path.name for path in folder.glob('*/*')}


def test_no_image_is_trained_on_and_chosen_by(source, tmp_path):
  sets.share(tmp_path / 'out', source, 10, 8, 6)
  train, choose, test = (tmp_path / 'out' / split for split in ('train', 'choose', 'test'))
  for name in ('one', 'two'):
    assert [len(list((split / name).iterdir())) for split in (train, choose, test)] == [5, 4, 3]
    assert not {path.name for path in (train / name).iterdir()} & {
      path.name for path in (choose / name).iterdir()}
  assert names(test) <= names(source / 'test')
  sets.share(tmp_path / 'again', source, 10, 8, 6)
  assert names(tmp_path / 'again' / 'train') == names(train)


def test_a_crop_of_every_photograph_is_to_be_found(source, tmp_path):
  sets.crops_of_photographs(tmp_path / 'out', source / 'test')
  assert len(names(tmp_path / 'out' / 'train')) == 4
  assert len(list((tmp_path / 'out' / 'test').iterdir())) == 8
  with Image.open(next((tmp_path / 'out' / 'test').glob('*/*'))) as image:
    assert 0.15 < image.width * image.height / (40 * 60) < 0.55


def test_a_set_is_whole_or_not_there(tmp_path):
  def broken(out):
    out.mkdir()
    (out / 'half').touch()
    raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    sets.write(tmp_path / 'digits', broken)
  assert not (tmp_path / 'digits').exists()
  sets.write(tmp_path / 'digits', lambda out: out.mkdir())
  assert list((tmp_path / 'digits').iterdir()) == []
  sets.write(tmp_path / 'digits', broken)
