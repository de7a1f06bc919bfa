"""Which image and label of a TFDS data set are read, and data sets that cannot be opened."""
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from conic_jax.data import multilabel, sources, tfds_builder
from conic_jax.data.tfds_source import TfdsSource
from conic_jax.errors import UserError

RGB, GREY = tfds.features.Image(shape=(None, None, 3)), tfds.features.Image(shape=(None, None, 1))
KIND, PLACE = (tfds.features.ClassLabel(names=names) for names in (['ant', 'bee', 'cat'], ['sea', 'land']))
TAGS = tfds.features.Sequence(tfds.features.ClassLabel(names=['red', 'wet', 'old']))


def prepare(root, features, **values):
  """A data set of four images with these features, whose values are functions of the image's number."""
  with tfds.core.registered.skip_registration():
    class Made(tfds.core.GeneratorBasedBuilder):
      """Made by this test."""
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, _):
        return {'train': self._generate_examples()}

      def _generate_examples(self):
        for i in range(4):
          yield i, {name: value(i) for name, value in values.items()}
  Made(data_dir=str(root)).download_and_prepare()


def shade(value):
  return lambda i: np.full((4, 4, 3), value + i, np.uint8)


def grey(i):
  return np.full((4, 4, 1), 200 + i, np.uint8)


def config_of(root, **changes):
  return ConfigDict({'name': 'made', 'dir': str(root), 'cache': str(root / 'cache'), **changes})


def opened(root, **changes):
  return sources.open_source(config_of(root, **changes), 'train')


def shades(source):
  """The first values of its images, ascending."""
  images, _ = source.read(np.arange(4))
  return sorted(int(tfds.features.Image().decode_example(image).numpy()[0, 0, 0]) for image in images)


@pytest.fixture(scope='module')
def two_pictures(tmp_path_factory):
  """Two RGB images, two classes and a list of tags, none of a usual name."""
  root = tmp_path_factory.mktemp('two_pictures')
  prepare(root, {'annotation': RGB, 'scene': {'img': RGB}, 'kind': KIND, 'place': PLACE, 'tags': TAGS},
          annotation=shade(100), scene=lambda i: {'img': shade(10)(i)}, kind=lambda i: i % 3,
          place=lambda i: i // 2, tags=lambda i: [[], [0], [1, 2], [2]][i])
  return root


def test_two_pictures_are_not_guessed_between(two_pictures):
  with pytest.raises(UserError, match=r'2 features that may be the image \(annotation, scene/img\): set '
                     r'config.data.image to one of them. It has annotation Image \(None, None, 3\); kind '
                     r'ClassLabel of 3 classes; .*scene/img Image \(None, None, 3\); tags Sequence of '
                     'ClassLabel'):
    opened(two_pictures)
  with pytest.raises(UserError, match=r"2 features that may be the label \(kind, place\): set "
                     "config.data.label to one of them, or to 'none'"):
    opened(two_pictures, image='annotation')


@pytest.mark.parametrize(('image', 'expected'), [('annotation', 100), ('scene/img', 10)])
@pytest.mark.parametrize(('label', 'names', 'labels'), [
  ('kind', ('ant', 'bee', 'cat'), [0, 0, 1, 2]), ('place', ('sea', 'land'), [0, 0, 1, 1]),
  ('none', (), [-1] * 4), ('tags', (), [-1] * 4)])
def test_the_chosen_features_are_read(image, expected, label, names, labels, two_pictures):
  source = opened(two_pictures, image=image, label=label)
  assert shades(source) == [expected + i for i in range(4)]
  assert source.class_names == names
  assert source.num_classes == len(names)
  assert sorted(source.labels()) == labels
  assert source.description == f"image '{image}', " + (f"label '{label}'" if names else 'no label')
  assert next(source.inventory()) == [f'made/1.0.0, image {image}']


@pytest.mark.parametrize(('choice', 'words'), [
  ({'image': 'img'}, "config.data.image is 'img', which is no image of the data set. It has annotation"),
  ({'image': 'kind'}, "'kind', which is no image"), ({'image': 'scene/', 'label': 'kind'}, 'no image'),
  ({'image': 'scene/img', 'label': 'scene/img'}, 'no label'),
  ({'image': 'scene/img', 'label': 'x'}, 'no label')])
def test_a_choice_that_is_not_there_is_told(choice, words, two_pictures):
  with pytest.raises(UserError, match=words):
    opened(two_pictures, **choice)


def test_lists_of_labels_are_for_several_labels_an_image(two_pictures):
  expected = {0: [0, 0, 0], 1: [1, 0, 0], 2: [0, 1, 1], 3: [0, 0, 1]}
  source, = multilabel.open_splits(config_of(two_pictures, image='scene/img', label='tags'), ('train',), '')
  assert source.class_names == ('red', 'wet', 'old')
  numbers = [tfds.features.Image().decode_example(image).numpy()[0, 0, 0] - 10
             for image in source.read(np.arange(4))[0]]
  np.testing.assert_array_equal(source.targets, [expected[number] for number in numbers])
  one_hot, = multilabel.open_splits(config_of(two_pictures, image='scene/img', label='kind'), ('train',), '')
  assert one_hot.targets.sum() == 4
  assert one_hot.class_names == ('ant', 'bee', 'cat')


@pytest.mark.parametrize(('features', 'values', 'image', 'first'), [
  ({'picture': RGB}, {'picture': shade(10)}, 'picture', 10),
  ({'digits': GREY}, {'digits': grey}, 'digits', 200),
  ({'annotation': GREY, 'img': RGB}, {'annotation': grey, 'img': shade(10)}, 'img', 10),
  ({'annotation': RGB, 'image': RGB}, {'annotation': shade(100), 'image': shade(10)}, 'image', 10),
  ({'aside': RGB, 'image_left': RGB}, {'aside': shade(100), 'image_left': shade(10)}, 'image_left', 10)],
  ids=['alone', 'grey alone', 'RGB among others', 'usual name', 'left of two'])
def test_where_there_is_no_doubt_nothing_needs_to_be_chosen(features, values, image, first, tmp_path):
  prepare(tmp_path, {**features, 'label': KIND, 'other': PLACE}, **values, label=lambda i: 2,
          other=lambda i: 0)
  source = opened(tmp_path)
  assert source.description == f"image '{image}', label 'label'"
  assert shades(source)[0] == first
  assert next(source.inventory()) == ['made/1.0.0']


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A data set of one image and one label, in a folder of its own."""
  root = tmp_path_factory.mktemp('plain') / 'sets'
  prepare(root, {'image': RGB, 'label': KIND}, image=shade(10), label=lambda i: i % 3)
  return root


@pytest.mark.parametrize(('split', 'words'), [
  ('train[3:1]', 'holds no image'), ('train[-1:-3]', 'holds no image'), ('train[2:2]', 'holds no image'),
  ('train+train', 'names some images twice'), ('train[:3]+train[2:]', 'names some images twice'),
  ('', 'has no split'), ('train[1:3', 'has no split'), ('nothing+train', 'has no split')])
def test_a_split_that_names_nothing_or_something_twice_is_told(split, words, plain):
  with pytest.raises(UserError, match=words):
    sources.open_source(config_of(plain), split)


@pytest.mark.parametrize('below', ['made', 'made/1.0.0', '..'])
def test_a_folder_one_level_off_is_named(below, plain):
  with pytest.raises(UserError, match=f'is not in .* but in {plain}: set config.data.dir to that'):
    opened(plain, dir=str(plain / below))


@pytest.mark.parametrize(('name', 'words'), [
  ('CIFAR10', r"no data set 'CIFAR10' in TFDS \(did you mean 'cifar10'\?\)"),
  ('cifar-10', "did you mean 'cifar10'"), ('m_ade', "did you mean 'made'"), ('maid', "did you mean 'made'"),
  ('made:2.0.0', "has no 'made:2.0.0', but made with 1.0.0: set config.data.name to .* such as 'made:1.0.0'"),
  ('made/other', "such as 'made:1.0.0'"), ('', 'config.data.name is empty'), ('two words', 'cannot open')])
def test_a_name_that_is_nearly_right_is_mended_in_words(name, words, plain):
  with pytest.raises(UserError, match=words):
    opened(plain, name=name)


def test_a_hub_that_does_not_answer_is_told(plain, monkeypatch):
  def unreachable(*arguments, **options):
    raise ConnectionError('Name or service not known')
  monkeypatch.setattr(tfds_builder.tfds, 'builder', unreachable)
  with pytest.raises(UserError, match=r"asks a hub for 'huggingface:mnist'.*service not known.*'folder'"):
    opened(plain, name='huggingface:mnist')


@pytest.mark.parametrize('file', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('content', ['', '{', '[]', '{}', 'no json', None])
def test_damaged_descriptions_are_told(file, content, plain, tmp_path):
  shutil.copytree(plain, tmp_path / 'sets')
  path = tmp_path / 'sets' / 'made' / '1.0.0' / file
  path.unlink() if content is None else path.write_text(content)
  with pytest.raises(UserError, match=r'(damaged|missing|is whole).*again'):
    opened(tmp_path / 'sets')


def test_a_home_folder_is_expanded(plain, monkeypatch):
  monkeypatch.setenv('HOME', str(plain.parent))
  assert TfdsSource('made', '~/sets', 'train', str(plain / 'cache')).num_images == 4


def test_masks_are_those_of_the_chosen_image(tmp_path):
  prepare(tmp_path, {'a': RGB, 'b': RGB, 'map': GREY}, a=shade(10), b=shade(100), map=grey)
  source = TfdsSource('made', str(tmp_path), 'train', str(tmp_path / 'cache'), masks=True, image='b')
  assert shades(source)[0] == 200
