import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from conic_jax.data import sources
from conic_jax.data.multilabel import open_splits
from conic_jax.errors import UserError

GOOD = 'image,labels\nb.png,cat; dog\na/1.png,\n'


def data(root, name='folder'):
  return ConfigDict({'name': name, 'dir': str(root), 'cache': str(root / 'cache')})


def fill(root, table, images=('a/1.png', 'b.png'), split='train'):
  for image in images:
    (root / split / image).parent.mkdir(parents=True, exist_ok=True)
    (root / split / image).write_bytes(image.encode())
  if table is not None:
    (root / split / 'labels.csv').write_bytes(table if isinstance(table, bytes) else table.encode())


def test_the_classes_of_a_folder_are_those_of_all_its_splits(tmp_path):
  fill(tmp_path, GOOD)
  fill(tmp_path, '\ufeffimage,labels\r\n"c,d.png",ant;cat;ant\r\n\r\n', ('c,d.png',), 'test')
  train, test = open_splits(data(tmp_path), ('train', 'test'), 'labels.csv')
  assert train.class_names == test.class_names == ('ant', 'cat', 'dog')
  assert (train.num_images, train.num_classes, test.num_images) == (2, 3, 1)
  assert train.targets.dtype == np.int8
  np.testing.assert_array_equal(train.targets, [[0, 0, 0], [0, 1, 1]])
  np.testing.assert_array_equal(test.targets, [[1, 1, 0]])
  images, labels = train.read(np.array([1, 0]))
  assert images == [b'b.png', b'a/1.png']
  np.testing.assert_array_equal(labels, [-1, -1])
  assert train.name(0) == f'{tmp_path}/train/a/1.png'


@pytest.mark.parametrize(('table', 'images', 'message'), [
  (None, ('a.png',), r'labels\.csv cannot be read: set config\.svm\.labels'),
  (b'image,labels\n\xff', ('a.png',), 'not text in UTF-8'),
  ('', ('a.png',), r"begins with '': its first line must be 'image,labels'"),
  ('file,labels\na.png,x\n', ('a.png',), "begins with 'file,labels'"),
  ('image,labels\na.png\n', ('a.png',), r'Line 2 of .* has 1 fields'),
  ('image,labels\na.png,x\nz.png,x\ny.png,\n', ('a.png',), r'^2 images of .* are missing .*\(y.png, z.png\)'),
  ('image,labels\n1.png,x\n', tuple(f'{i}.png' for i in range(8)),
   r'^7 images have no line in .*\(0\.png, 2\.png, 3\.png, 4\.png, 5\.png …\)'),
  ('image,labels\na.png,x\na.png,y\n', ('a.png',), r'^1 images have several lines .*\(a\.png\)'),
  ('image,labels\na.png,"person,boat"\n', ('a.png',), "Line 2 .* the label 'person,boat': write ; between"),
  ('image,labels\na.png,x;"y",z\n', ('a.png',), 'Line 2 of .* has 3 fields'),
  ('image,labels\na.png,;\n', ('a.png',), 'name no label')])
def test_a_file_of_labels_that_makes_no_sense_is_told(tmp_path, table, images, message):
  fill(tmp_path, table, images)
  with pytest.raises(UserError, match=message):
    open_splits(data(tmp_path), ('train',), 'labels.csv')


with tfds.core.registered.skip_registration():

  class TinyVoc(tfds.core.GeneratorBasedBuilder):
    """Objects with the fields that VOC's have."""
    VERSION = tfds.core.Version('1.0.0')
    # (label, whether it is difficult) of the objects of every image.
    OBJECTS = ([], [(0, False), (2, True)], [(1, True), (1, False)], [(1, True), (1, True), (0, False)])

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        'image': tfds.features.Image(), 'objects': tfds.features.Sequence({
          'label': tfds.features.ClassLabel(names=['ant', 'bee', 'cat']), 'is_difficult': np.bool_})}))

    def _split_generators(self, _):
      return {'train': self._generate_examples(range(4)), 'test': self._generate_examples(range(2, 4))}

    def _generate_examples(self, images):
      for i in images:
        objects = [{'label': label, 'is_difficult': difficult} for label, difficult in self.OBJECTS[i]]
        yield i, {'image': np.full((4, 4, 3), i, np.uint8), 'objects': objects}


def test_an_object_that_is_difficult_alone_is_neither_present_nor_absent(tmp_path):
  TinyVoc(data_dir=str(tmp_path)).download_and_prepare()
  train, test = open_splits(data(tmp_path, 'tiny_voc'), ('train', 'test'), 'labels.csv')
  assert train.class_names == ('ant', 'bee', 'cat')
  expected = {0: [0, 0, 0], 1: [1, 0, -1], 2: [0, 1, 0], 3: [1, -1, 0]}
  for source, count in ((train, 4), (test, 2)):
    images, labels = source.read(np.arange(count))
    # TFDS shuffles: an image is known by its colour.
    numbers = [tfds.features.Image().decode_example(image).numpy().max() for image in images]
    assert len(set(numbers)) == count
    np.testing.assert_array_equal(source.targets, [expected[number] for number in numbers])
    np.testing.assert_array_equal(labels, [-1] * count)


@pytest.mark.slow
def test_one_label_an_image_is_one_class_present(image_folder):
  for config, splits in ((ConfigDict({'name': 'photos', 'dir': '', 'cache': ''}), ('train', 'test')),
                         (ConfigDict({'name': 'folder', 'dir': str(image_folder)}), ('train', 'test'))):
    for source, split in zip(open_splits(config, splits, ''), splits, strict=True):
      single = sources.open_source(config, split)
      assert source.class_names == single.class_names
      np.testing.assert_array_equal(source.targets, np.eye(single.num_classes)[single.labels()])


def test_data_without_labels_is_told(image_folder):
  config = ConfigDict({'name': 'folder', 'dir': str(image_folder)})
  for splits in (('train/checks', 'test/checks'), ('train', 'test/checks')):
    with pytest.raises(UserError, match='have no labels, or other ones in each split'):
      open_splits(config, splits, '')
