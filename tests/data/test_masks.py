"""Images with masks: sources, ids, crops and whole images."""
import dataclasses
import types

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from samples import FakeSource, encode, smooth

from conic_jax.data import mask_pipeline, masks
from conic_jax.data.masks import VOID, Pairs
from conic_jax.errors import UserError

TWO = masks.label_table(2, (), (255,))
FILL = (9, 8, 7)
SQUARES = mask_pipeline.MaskCrops((30, 30), (0.5, 2.0), short_side=0, fill=FILL)


def stripes(height, width, seed=0):
  """A picture of black and white rows or columns, and the mask that says which pixel is white."""
  side = max(height, width)
  line = np.repeat(np.random.default_rng(seed).integers(0, 2, -(-side // 9)), 9)[:side]
  white = np.broadcast_to(line if seed % 2 else line[:, None], (side, side))[:height, :width]
  return np.repeat(np.uint8(255 * white)[..., None], 3, axis=-1), white.astype(np.uint8)


def striped(sizes, broken=()):
  pictures = [stripes(*size, seed) for seed, size in enumerate(sizes)]
  images = [b'broken' if i in broken else encode(image) for i, (image, _) in enumerate(pictures)]
  return Pairs(FakeSource(images), FakeSource([encode(mask) for _, mask in pictures]))


def write(root, names, content):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(content).save(root / name)


def folder_of(root, name='folder'):
  return types.SimpleNamespace(name=name, dir=str(root), cache=str(root / 'cache'))


@pytest.mark.parametrize(('ids', 'ignore', 'raw', 'classes'), [
  ((), (255,), (0, 1, 2, 255), (0, 1, 2, VOID)),
  ((7, 8, 11), (0, 255), (0, 7, 8, 11), (VOID, 0, 1, 2)),
  ((1, 2, 3), (0,), (0, 1, 2, 3), (VOID, 0, 1, 2)),
])
def test_ids_become_classes(ids, ignore, raw, classes):
  table = masks.label_table(3, ids, ignore)
  assert tuple(table[list(raw)]) == classes
  assert (table == 254).sum() == 256 - 3 - len(ignore)


@pytest.mark.parametrize(('settings', 'words'), [
  ((0, (), ()), 'num_classes is 0'), ((255, (), ()), 'from 1 to 254'),
  ((3, (1, 2), ()), 'has 2 ids and num_classes is 3'), ((2, (1, 1), ()), 'one id of its own'),
  ((2, (), (1, 255)), 'not in config.segmentation.ignore'), ((2, (1, 300), ()), 'from 0 to 255'),
])
def test_ids_that_contradict_each_other_are_told(settings, words):
  with pytest.raises(UserError, match=words):
    masks.label_table(*settings)


def test_a_folder_pairs_by_name(tmp_path):
  # In the order of paths a-b precedes a.b among the images, and a.b.png precedes a.png among the masks.
  stems = ('a', 'a.b', 'a-b', 'town/c')
  for value, stem in enumerate(stems):
    suffix = '.png' if value % 2 else '.bmp'
    write(tmp_path / 'train/images', [stem + suffix], np.full((4, 5, 3), value, np.uint8))
    write(tmp_path / 'train/masks', [stem + '.png'], np.full((4, 5), value, np.uint8))
  pairs = masks.open_pairs(folder_of(tmp_path), 'train')
  found = masks.read_pairs(pairs, np.arange(4), masks.label_table(4, (), ()))
  values = [(np.asarray(image)[0, 0, 0], np.asarray(mask)[0, 0]) for image, mask in found]
  assert sorted(values) == [(value, value) for value in range(4)]
  assert pairs.num_images == 4
  assert pairs.masks.name(3).endswith('masks/town/c.png')


@pytest.mark.parametrize(('images', 'named', 'words'), [
  (['a.png', 'b.png', 'c.png'], ['b.png'], r'2 of 3 images have no mask.*images/a.png, .*images/c.png'),
  (['b.png'], ['a.png', 'b.png'], r'1 of 2 masks have no image.*masks/a.png'),
  (['a.png', 'a.bmp'], ['a.png'], r'1 files in .*images differ .* in their extension alone'),
  (['a.png'], [], r'folder of images .*masks cannot be listed'),
])
def test_a_folder_without_partners_is_told(images, named, words, tmp_path):
  write(tmp_path / 'images', images, np.zeros((4, 4, 3), np.uint8))
  write(tmp_path / 'masks', named, np.zeros((4, 4), np.uint8))
  with pytest.raises(UserError, match=words):
    masks.open_pairs(folder_of(tmp_path), '')


def test_masks_of_every_kind_are_read():
  ids = np.array([[0, 1], [1, 255]], np.uint8)
  palette = PIL.Image.fromarray(ids)
  palette.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
  same = PIL.Image.fromarray(np.repeat(ids[..., None], 3, axis=-1))
  encoded = [encode(ids), encode(palette), encode(same)]
  pairs = Pairs(FakeSource([encode(np.zeros((2, 2, 3), np.uint8))] * 3), FakeSource(encoded))
  for _, mask in masks.read_pairs(pairs, np.arange(3), TWO):
    np.testing.assert_array_equal(np.asarray(mask), ids)


@pytest.mark.parametrize(('mask', 'words'), [
  (np.array([[0, 7], [9, 1]], np.uint8), r'image-0 has 2 ids that are none of the 2 classes \(7, 9\)'),
  (np.zeros((2, 3), np.uint8), 'image-0 has 3×2 pixels and its image 2×2'),
  (smooth(2, 2), 'image-0 is no map of ids but a picture of kind RGB'),
  (np.zeros((2, 2), np.uint16), 'picture of kind I;16'),
])
def test_masks_that_do_not_suit_are_named_and_counted(mask, words):
  image, good = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
  encoded = [encode(mask), encode(good), encode(good), encode(mask)]
  pairs = Pairs(FakeSource([encode(image)] * 4), FakeSource(encoded))
  with pytest.raises(UserError, match=words):
    masks.read_pairs(pairs, np.array([1, 0]), TWO)
  with pytest.raises(UserError, match=f'2 of the 4 masks looked at do not suit.*{words}'):
    masks.check_pairs(pairs, TWO)
  with pytest.raises(UserError, match=words):
    list(mask_pipeline.eval_batches(pairs, TWO, canvas=(4, 4), short_side=0, fill=FILL, batch_size=2,
                                    rows=np.arange(2)))


def pairs_of(*rows, grey=200):
  """Pairs of a 16-bit grey image and a mask with these rows of ids."""
  encoded = [encode(np.array(row, np.uint8)) for row in rows]
  image = encode(np.full(np.shape(rows[0]), grey * 256, np.uint16))
  return Pairs(FakeSource([image] * len(rows)), FakeSource(encoded))


@pytest.mark.parametrize(('rows', 'num_classes', 'ignore', 'words'), [
  (([[0, 255]], [[255, 0]]), 2, (255,), r'no pixel of the id 1. They hold the ids 0, 255, of which '
   r'config.segmentation.ignore leaves out 255: if these are the classes, set '
   r'--config.segmentation.ids="\(0, 255\)" and --config.segmentation.ignore="\(\)"'),
  (([[0, 1]],), 4, (255,), 'no pixel of the ids 2, 3. They hold the ids 0, 1: set .* or num_classes'),
  (([[255, 255]],) * 3, 2, (255,), 'no pixel of any class. They hold the id 255, of which .* out 255: set'),
  (([[7, 9]],), 2, (7, 9), r'no pixel of any class. They hold the ids 7, 9, .* out 7, 9: .*ids="\(7, 9\)"'),
])
def test_a_class_without_a_pixel_is_refused_with_the_ids_there_are(rows, num_classes, ignore, words):
  table, pairs = masks.label_table(num_classes, (), ignore), pairs_of(*rows)
  pixels = masks.check_pairs(pairs, table)
  with pytest.raises(UserError, match=words):
    masks.check_classes(pixels, table, 'train', every=True)


def test_a_test_set_may_lack_a_class_and_says_so_but_not_all():
  pairs = pairs_of([[0, 0, 0, 255]])
  pixels = masks.check_pairs(pairs, TWO)
  masks.check_classes(pixels, TWO, 'test', every=False)
  assert masks.describe_ids(pixels, TWO, 'test') == (
    'Ids in the masks of test, by share of the pixels: 0 75.00%, 255 (ignored) 25.00%. '
    'No pixel has the id 1.')
  nothing = np.bincount([255], minlength=256)
  with pytest.raises(UserError, match='no pixel of any class'):
    masks.check_classes(nothing, TWO, 'test', every=False)


def test_a_rare_class_is_looked_for_in_every_mask_and_no_further():
  common, rare = [[0, 0]], [[0, 1]]
  pairs = pairs_of(*[common] * 98, rare, common)
  ids = np.unique(np.linspace(0, 99, 64).astype(int))
  assert 98 not in ids
  pixels = masks.check_pairs(pairs, TWO)
  masks.check_classes(pixels, TWO, 'train', every=True)
  assert pixels[1] == 1
  assert pairs.images.reads == 64
  assert masks.check_pairs(pairs_of(*[rare] * 100), TWO).sum() == 2 * 64


def test_images_are_read_as_pretraining_reads_them():
  (image, _), = masks.read_pairs(pairs_of([[0, 1]], grey=90), np.arange(1), TWO)
  np.testing.assert_array_equal(np.asarray(image), np.full((1, 2, 3), 90))


def test_masks_of_one_bit_are_read_and_jpegs_are_told():
  image = encode(np.zeros((8, 8, 3), np.uint8))
  bits = np.tri(8, dtype=bool)
  (_, mask), = masks.read_pairs(Pairs(FakeSource([image]), FakeSource([encode(bits)])), np.arange(1), TWO)
  np.testing.assert_array_equal(np.asarray(mask), bits)
  lossy = encode(np.uint8(255 * np.tri(8)), 'JPEG', quality=40)
  with pytest.raises(UserError, match='it is a JPEG, which changes ids: save masks as PNGs'):
    masks.read_pairs(Pairs(FakeSource([image]), FakeSource([lossy])), np.arange(1), TWO)


def test_what_cannot_be_decoded_is_none():
  good = encode(np.zeros((2, 2, 3), np.uint8))
  pairs = Pairs(FakeSource([b'', good, good]), FakeSource([encode(np.zeros((2, 2), np.uint8)), b'x', b'']))
  assert masks.read_pairs(pairs, np.arange(3), TWO) == [None] * 3
  pixels = masks.check_pairs(pairs, TWO)
  assert pixels[0] == 4
  broken = Pairs(FakeSource([good]), FakeSource([b'x']))
  with pytest.raises(UserError, match="None of the masks of 'train' can be decoded"):
    masks.check_classes(masks.check_pairs(broken, TWO), TWO, 'train', every=True)


with tfds.core.registered.skip_registration():

  class TinyScenes(tfds.core.GeneratorBasedBuilder):
    """A label map beside its image, named and shaped as Cityscapes' are."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        'image_left': tfds.features.Image(shape=(None, None, 3)),
        'other_image': tfds.features.Image(shape=(None, None, 3)),
        'segmentation_label': tfds.features.Image(shape=(None, None, 1))}))

    def _split_generators(self, _):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(5):
        image = np.full((4, 6, 3), i, np.uint8)
        yield i, {'image_left': image, 'other_image': image + 9, 'segmentation_label': image[..., :1]}

  class TinyImages(TinyScenes):
    """No label map."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        'image': tfds.features.Image(shape=(None, None, 3))}))

    def _generate_examples(self):
      yield 0, {'image': np.zeros((4, 6, 3), np.uint8)}


def test_the_label_map_of_tfds_is_found(tmp_path):
  for builder in (TinyScenes, TinyImages):
    builder(data_dir=tmp_path).download_and_prepare()
  pairs = masks.open_pairs(folder_of(tmp_path, 'tiny_scenes'), 'train')
  found = masks.read_pairs(pairs, np.arange(5), masks.label_table(5, (), ()))
  values = [(np.asarray(image)[0, 0, 0], np.asarray(mask)[0, 0]) for image, mask in found]
  assert sorted(values) == [(value, value) for value in range(5)]
  with pytest.raises(UserError, match="'tiny_images' has no label map, only image"):
    masks.open_pairs(folder_of(tmp_path, 'tiny_images'), 'train')


def crops_of(pairs, **changes):
  crops = mask_pipeline.MaskCrops((40, 48), (0.5, 2.0), short_side=0, fill=FILL)
  settings = {'batch_size': 4, 'seed': 0, 'steps': 6, 'rows': np.arange(4), **changes}
  return list(mask_pipeline.train_batches(pairs, TWO, crops, **settings))


def test_image_and_mask_stay_aligned_under_scale_crop_and_flip():
  batches = crops_of(striped([(60, 80), (50, 41), (33, 70), (64, 64)]))
  assert len(batches) == 6
  painted = padded = 0
  for batch in batches:
    assert batch['valid'].all()
    for image, mask in zip(batch['image'], batch['mask'], strict=True):
      inside = mask != VOID
      np.testing.assert_array_equal(image[~inside], np.full(((~inside).sum(), 3), FILL))
      grey = image[..., 0][inside].astype(int)
      clear = np.abs(grey - 127.5) > 3  # At an edge's middle either class is right.
      np.testing.assert_array_equal((grey > 127)[clear], mask[inside][clear] == 1)
      assert clear.mean() > 0.97
      painted, padded = painted + inside.sum(), padded + (~inside).sum()
  assert padded > 0.02 * painted > 0


def test_crops_fill_the_allowed_range():
  shapes, ids = np.tile([[60, 90]], (4000, 1)), np.arange(4000)
  boxes, sizes, flips = mask_pipeline.random_crops(shapes, ids, 3, 1, SQUARES)
  factor = sizes / (boxes[:, 2:] - boxes[:, :2])
  np.testing.assert_allclose(factor[:, 0], factor[:, 1], rtol=0.03)  # Sizes are whole pixels.
  np.testing.assert_allclose(np.quantile(factor[:, 0], [0, 0.5, 1]), [0.5, 1.25, 2], atol=0.03)
  first, last = boxes[:, :2], boxes[:, 2:]
  np.testing.assert_array_equal(first.min(axis=0), [0, 0])
  np.testing.assert_array_equal(last.max(axis=0), [60, 90])
  assert 0.46 < flips.mean() < 0.54
  unscaled = dataclasses.replace(SQUARES, scale=(1.0, 1.0), short_side=20)
  boxes, sizes, _ = mask_pipeline.random_crops(shapes, ids, 3, 1, unscaled)
  assert (sizes == (20, 30)).all()
  assert (boxes == [0, 0, 60, 90]).all()


def test_a_crop_depends_on_seed_epoch_and_id_alone():
  shapes = np.random.default_rng(0).integers(20, 90, (12, 2))
  def draw(ids, seed=5, epoch=2):
    return np.hstack(mask_pipeline.random_crops(shapes[ids], ids, seed, epoch, SQUARES)[:2])
  ids = np.arange(12)
  np.testing.assert_array_equal(draw(ids)[[7, 3]], draw(np.array([7, 3])))
  for other in (draw(ids, seed=6), draw(ids, epoch=3)):
    assert (other != draw(ids)).any(axis=1).all()


def test_two_hosts_read_the_rows_of_one():
  pairs = striped([(30, 34)] * 8)
  whole, first, second = (crops_of(pairs, rows=np.array(rows), steps=3)
                          for rows in (range(4), (0, 2), (1, 3)))
  for batch, even, odd in zip(whole, first, second, strict=True):
    for name, rows in batch.items():
      np.testing.assert_array_equal(rows[::2], even[name])
      np.testing.assert_array_equal(rows[1::2], odd[name])


def test_a_broken_pair_is_padding_that_is_not_valid():
  batches = crops_of(striped([(30, 34)] * 4, broken=[2]))
  for batch in batches:
    np.testing.assert_array_equal(batch['valid'], batch['id'] != 2)
    broken = batch['id'] == 2
    assert broken.sum() == 1
    assert (batch['mask'][broken] == VOID).all()
    assert (batch['image'][broken] == FILL).all()


def test_too_few_images_for_a_batch_are_told():
  with pytest.raises(UserError, match=r'2 images .*batch_size to at most 2'):
    crops_of(striped([(20, 20)] * 2))


@pytest.mark.parametrize(('short_side', 'sizes'), [
  (0, [(20, 30), (12, 10), (32, 16), (24, 40)]), (16, [(16, 24), (19, 16), (32, 16), (16, 27)])])
def test_every_image_is_tested_whole_and_once(short_side, sizes):
  shapes = [(20, 30), (12, 10), (64, 32), (30, 50)]
  pairs = striped([*shapes, (9, 9)], broken=[4])
  batches = list(mask_pipeline.eval_batches(pairs, TWO, canvas=(32, 40), short_side=short_side, fill=FILL,
                                            batch_size=2, rows=np.arange(2)))
  ids, valid, shown = (np.concatenate([batch[name] for batch in batches]) for name in ('id', 'valid', 'size'))
  assert ids.tolist() == [0, 1, 2, 3, 4, -1]
  assert valid.tolist() == [True] * 4 + [False] * 2
  np.testing.assert_array_equal(shown[:4], sizes)
  images = np.concatenate([batch['image'] for batch in batches])
  truths = [mask for batch in batches for mask in batch['mask']]
  for id, (height, width) in enumerate(sizes):
    np.testing.assert_array_equal(truths[id], stripes(*shapes[id], id)[1])
    outside = np.ones((32, 40), bool)
    outside[:height, :width] = False
    assert (images[id][outside] == FILL).all()
    if (height, width) == shapes[id]:
      np.testing.assert_array_equal(images[id][:height, :width], stripes(height, width, id)[0])
