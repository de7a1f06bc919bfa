"""Images with segmentation masks, and the mapping from mask ids to classes."""
import dataclasses
import io
import os

import numpy as np
import PIL.Image

from conic_jax.data import decode, folder, kinds, sources
from conic_jax.data.sources import Source
from conic_jax.errors import UserError, listed
from conic_jax.home import cache_folder

VOID = 255  # A pixel without a class: ignored in training and evaluation.
MOST_CLASSES = 254
_UNKNOWN = 254
_LOOKED_AT = 64
_PARTS = 'images', 'masks'


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Images and their masks: two sources of the same length with matching ids."""
  images: Source
  masks: Source

  @property
  def num_images(self) -> int:
    """Number of pairs."""
    return self.images.num_images

  def name(self, id: int) -> str:
    """Name of the image; a message about it may concern its mask."""
    return f'{self.images.name(id)} (or its mask)'


def open_pairs(data, split: str) -> Pairs:
  """Opens the images and masks that a config names.

  A folder has SPLIT/images and SPLIT/masks; an image and its mask have the same relative path except for
  the extension. In a TFDS data set the label map is found by its type.

  Args:
    data: config node as for `sources.open_source`.
    split: subfolder, or TFDS's split expression.

  Raises:
    UserError: if there are none, or some images or masks have no counterpart.
  """
  if data.name in kinds.SUFFIXES:
    raise UserError(f"config.data.name is '{data.name}', which has no masks: set it to 'folder', with images "
                    'and masks in subfolders, or to a TFDS name.')
  if data.name != 'folder':
    from conic_jax.data import tfds_source  # Takes a while, and every evaluation imports this module.
    images, masks = (tfds_source.TfdsSource(data.name, data.dir, split, data.cache or str(cache_folder()),
                                            masks, getattr(data, 'image', '')) for masks in (False, True))
    return Pairs(images, masks)
  images, masks = (folder.Folder(data.dir, os.path.join(split, part)) for part in _PARTS)
  image_ids, mask_ids = (_by_stem(source, os.path.join(os.path.expanduser(data.dir), split, part))
                         for source, part in zip((images, masks), _PARTS, strict=True))
  _refuse(image_ids.keys() - mask_ids.keys(), 'images', images, image_ids, 'mask')
  _refuse(mask_ids.keys() - image_ids.keys(), 'masks', masks, mask_ids, 'image')
  return Pairs(images, sources.Subset(masks, np.array([mask_ids[stem] for stem in image_ids])))


def label_table(num_classes: int, ids: tuple[int, ...], ignore: tuple[int, ...]) -> np.ndarray:
  """Builds the table from mask ids to classes.

  Args:
    num_classes: C.
    ids: the id of each class in the masks, [C]; empty for 0 … C - 1.
    ignore: ids of pixels without a class.

  Returns:
    The class of each id, `VOID` for ignored ids, 254 for ids that must not occur: uint8 [256].

  Raises:
    UserError: if there are too many classes, or the ids contradict each other.
  """
  if not 1 <= num_classes <= MOST_CLASSES:
    raise UserError(f'config.segmentation.num_classes is {num_classes}: it is from 1 to {MOST_CLASSES}.')
  ids = tuple(ids) or tuple(range(num_classes))
  if len(ids) != num_classes or len({*ids, *ignore}) != len(ids) + len(ignore):
    raise UserError(f'config.segmentation.ids has {len(ids)} ids and num_classes is {num_classes}: give '
                    'every class one id of its own, which is not in config.segmentation.ignore either.')
  if not all(0 <= id <= 255 for id in (*ids, *ignore)):
    raise UserError('config.segmentation.ids and ignore are values of 8-bit masks: from 0 to 255.')
  table = np.full(256, _UNKNOWN, np.uint8)
  table[list(ids)] = np.arange(num_classes)
  table[list(ignore)] = VOID
  return table


def read_pairs(pairs: Pairs, ids: np.ndarray,
               table: np.ndarray) -> list[tuple[PIL.Image.Image, PIL.Image.Image] | None]:
  """Reads and decodes pairs.

  Args:
    pairs: the images and masks.
    ids: int [n].
    table: from `label_table`.

  Returns:
    (RGB image, 8-bit mask of classes and `VOID`) of each; None if either cannot be decoded.

  Raises:
    UserError: if a mask has an unknown id, is not 8-bit, or differs in size from its image.
  """
  encoded = zip(ids, pairs.images.read(ids)[0], pairs.masks.read(ids)[0], strict=True)
  return [_decode(pairs, int(id), image, mask, table) for id, image, mask in encoded]


def check_pairs(pairs: Pairs, table: np.ndarray) -> np.ndarray:
  """Checks, before training, up to 64 pairs spread evenly over the source, and all if they lack a class.

  Args:
    pairs: the images and masks.
    table: from `label_table`.

  Returns:
    Pixels of each id in the masks looked at, int64 [256].

  Raises:
    UserError: if any mask is invalid; names the first one and gives their number.
  """
  spread = np.unique(np.linspace(0, pairs.num_images - 1, _LOOKED_AT).astype(int))
  others = np.setdiff1d(np.arange(pairs.num_images), spread)
  pixels, mistakes, looked_at = np.zeros(256, np.int64), [], 0
  for id in (*spread, *others):
    if looked_at >= len(spread) and (mistakes or not len(lacking(pixels, table))):
      break
    looked_at += 1
    try:
      pixels += _count_ids(pairs, int(id), table, with_image=looked_at <= len(spread))
    except UserError as error:
      mistakes.append(str(error))
  if mistakes:
    raise UserError(f'{len(mistakes)} of the {looked_at} masks looked at do not suit. {mistakes[0]}')
  return pixels


def lacking(pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
  """The ids of the classes that have no pixel, ascending."""
  return np.flatnonzero((table < _UNKNOWN) & (pixels == 0))


def check_classes(pixels: np.ndarray, table: np.ndarray, split: str, every: bool) -> None:
  """Checks that masks hold pixels of the classes.

  Args:
    pixels: from `check_pairs`, of all masks if a class is lacking.
    table: from `label_table`.
    split: the name of the images, for the message.
    every: whether every class must have pixels, as in training; otherwise one is enough.

  Raises:
    UserError: if pixels are lacking; says which ids there are.
  """
  missing = lacking(pixels, table)
  if len(missing) < (1 if every else (table < _UNKNOWN).sum()):
    return
  held, ignored = np.flatnonzero(pixels), np.flatnonzero((table == VOID) & (pixels > 0))
  num_classes = int((table < _UNKNOWN).sum())
  if not len(held):
    raise UserError(f"None of the masks of '{split}' can be decoded.")
  lack = 'any class' if len(missing) == num_classes else f'the {_ids_in_words(missing)}'
  there = _ids_in_words(held)
  if len(ignored):
    there += f', of which config.segmentation.ignore leaves out {listed(ignored.tolist())}'
  remedy = 'set config.segmentation.ids and ignore to the ids of your masks, or num_classes to their number'
  if len(ignored) and len(held) == num_classes:
    remedy = (f'if these are the classes, set --config.segmentation.ids="{tuple(held.tolist())}" and '
              f'--config.segmentation.ignore="()"; otherwise {remedy}')
  raise UserError(f"The masks of '{split}' hold no pixel of {lack}. They hold the {there}: {remedy}.")


def describe_ids(pixels: np.ndarray, table: np.ndarray, split: str) -> str:
  """A sentence with the ids that the masks hold and their shares of the pixels."""
  shares = pixels / max(1, pixels.sum())
  held = [f'{id}{" (ignored)" if table[id] == VOID else ""} {shares[id]:.2%}'
          for id in np.flatnonzero(pixels)]
  sentence = f'Ids in the masks of {split}, by share of the pixels: {listed(held, 30)}.'
  missing = lacking(pixels, table)
  return sentence + (f' No pixel has the {_ids_in_words(missing)}.' if len(missing) else '')


def _ids_in_words(ids: np.ndarray) -> str:
  return f'id{"s" if len(ids) > 1 else ""} {listed(ids.tolist(), 20)}'


def _by_stem(source, root):
  """The id of each path below `root` without its extension."""
  paths = [os.path.relpath(source.name(id), root) for id in range(source.num_images)]
  stems = {os.path.splitext(path)[0]: id for id, path in enumerate(paths)}
  if len(stems) < len(paths):
    raise UserError(f'{len(paths) - len(stems)} files in {root} differ from another one in their extension '
                    'alone: leave one of each.')
  return stems


def _refuse(stems, which, source, ids, lacking):
  if stems:
    names = [source.name(ids[stem]) for stem in sorted(stems)]
    raise UserError(f'{len(names)} of {len(ids)} {which} have no {lacking}: an image and its mask have the '
                    f'same path in {"/ and ".join(_PARTS)}/ but for the extension ({listed(names)}).')


def _decode(pairs, id, encoded_image, encoded_mask, table):
  rgb, mask = decode.decode(encoded_image), _open_mask(encoded_mask)
  if rgb is None or mask is None:
    return None
  image, name = PIL.Image.fromarray(rgb), pairs.masks.name(id)
  _check_size(mask, image, name)
  return image, PIL.Image.fromarray(table[_known_ids(mask, name, table)])


def _count_ids(pairs, id, table, with_image):
  """Pixels of each id in a mask, int64 [256], zeros if it cannot be decoded; checks its image if asked."""
  name, mask = pairs.masks.name(id), _open_mask(pairs.masks.read(np.array([id]))[0][0])
  if mask is None:
    return np.zeros(256, np.int64)
  if with_image and (rgb := decode.decode(pairs.images.read(np.array([id]))[0][0])) is not None:
    _check_size(mask, PIL.Image.fromarray(rgb), name)
  return np.bincount(_known_ids(mask, name, table).ravel(), minlength=256)


def _check_size(mask, image, name):
  if mask.size != image.size:
    raise UserError('The mask {} has {}×{} pixels and its image {}×{}: make them the same.'.format(
      name, *mask.size, *image.size))


def _open_mask(encoded):
  try:
    mask = PIL.Image.open(io.BytesIO(encoded))
    mask.load()
    return mask
  except Exception:  # Pillow's decoders raise all kinds of exceptions; each means an unreadable image.
    return None


def _known_ids(mask, name, table):
  """The ids of a mask, uint8 [h, w]; each must be a class or ignored."""
  ids = _ids(mask, name)
  unknown = np.unique(ids[table[ids] == _UNKNOWN])
  if len(unknown):
    lossy = ' (it is a JPEG, which changes ids: save masks as PNGs)' if mask.format == 'JPEG' else ''
    raise UserError(f'The mask {name} has {len(unknown)} ids that are none of the '
                    f'{(table < _UNKNOWN).sum()} classes ({listed(unknown.tolist())}){lossy}: add them to '
                    'config.segmentation.ignore, or set num_classes or ids.')
  return ids


def _ids(mask, name):
  """The ids of a mask, uint8 [h, w]; an RGB mask must have equal channels."""
  if mask.mode == 'RGB':
    channels = np.asarray(mask)
    if (channels == channels[..., :1]).all():
      return channels[..., 0]
  if mask.mode not in ('1', 'L', 'P'):
    raise UserError(f'The mask {name} is no map of ids but a picture of kind {mask.mode}: give 8-bit PNGs, '
                    'grey or with a palette, whose values are the ids.')
  return np.asarray(mask).astype(np.uint8)
