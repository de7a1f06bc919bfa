"""Writes the folders that the recipe is measured on.

  python -m experiments.recipe.sets OUT --cifar10=DIR --tinyimagenet=DIR --imagenet=DIR

Each DIR is what people unpack: train/CLASS/*, and test/CLASS/* or val/CLASS/*. A set is a folder with train/
(what is pretrained on), choose/ (other training images, to choose settings by) and test/ (looked at once):

  photographs   patches of ten photographs that scikit-image and scikit-learn bring; nothing to choose by
  digits        scikit-learn's handwritten digits, 8×8 and grey
  cifar3k, cifar20k, tiny5k   that many images of CIFAR-10 and of Tiny-ImageNet
  imagenet1k    photographs of ImageNet, one a class; choose/ and test/ are crops of the same photographs
"""
import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sklearn.datasets
from PIL import Image

from conic_jax.data.photos import Photos

_SEED = 0
_CHOSEN_BY, _TESTED_ON = 2000, 5000
_CROP_AREA = (0.2, 0.5)


def main() -> None:
  """Writes every set whose images are given."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('out', type=Path)
  for name in ('cifar10', 'tinyimagenet', 'imagenet'):
    parser.add_argument(f'--{name}', type=Path)
  args = parser.parse_args()
  photographs(args.out / 'photographs')
  digits(args.out / 'digits')
  if args.cifar10:
    share(args.cifar10, args.out / 'cifar3k', 3000)
    share(args.cifar10, args.out / 'cifar20k', 20_000)
  if args.tinyimagenet:
    share(args.tinyimagenet, args.out / 'tiny5k', 5000)
  if args.imagenet:
    crops_of_photographs(args.imagenet, args.out / 'imagenet1k')


def photographs(out: Path) -> None:
  """The patches of `conic_jax.data.photos`, as files."""
  for split in ('train', 'test'):
    source = Photos(split)
    encoded, labels = source.read(np.arange(source.num_images))
    for index, (data, label) in enumerate(zip(encoded, labels)):
      path = out / split / source.class_names[label] / f'{index:05d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)


def digits(out: Path) -> None:
  """1,000 digits to train on, 297 to choose by, 500 to test on."""
  bunch = sklearn.datasets.load_digits()
  order = np.random.default_rng(_SEED).permutation(len(bunch.target))
  for split, part in (('train', order[:1000]), ('choose', order[1000:1297]), ('test', order[1297:])):
    for index in part:
      path = out / split / str(bunch.target[index]) / f'{index:05d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.round(bunch.images[index] * 255 / 16).astype(np.uint8)).save(path)


def share(source: Path, out: Path, count: int) -> None:
  """As many images of each class to train on, others to choose by, and held-out ones to test on."""
  held_out = next(source / name for name in ('test', 'val', 'validation') if (source / name).is_dir())
  rng = np.random.default_rng(_SEED)
  classes = sorted(path.name for path in (source / 'train').iterdir())
  for name in classes:
    images = _shuffled(source / 'train' / name, rng)
    first, after = count // len(classes), (count + _CHOSEN_BY) // len(classes)
    _copy(images[:first], out / 'train' / name)
    _copy(images[first:after], out / 'choose' / name)
    _copy(_shuffled(held_out / name, rng)[:_TESTED_ON // len(classes)], out / 'test' / name)


def crops_of_photographs(source: Path, out: Path) -> None:
  """Every photograph is a class: a crop of it is to find it among all of them."""
  rng = np.random.default_rng(_SEED)
  for index, path in enumerate(sorted(_images(source))):
    name = f'{index:04d}'
    _copy([path], out / 'train' / name)
    with Image.open(path) as image:
      for split in ('choose', 'test'):
        folder = out / split / name
        folder.mkdir(parents=True, exist_ok=True)
        image.convert('RGB').crop(_box(image.size, rng)).save(folder / f'{name}.png')


def _box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
  side = rng.uniform(*_CROP_AREA) ** 0.5
  width, height = (round(length * side) for length in size)
  left, top = rng.integers(size[0] - width + 1), rng.integers(size[1] - height + 1)
  return left, top, left + width, top + height


def _images(folder: Path) -> Iterator[Path]:
  return (path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))


def _shuffled(folder: Path, rng: np.random.Generator) -> list[Path]:
  images = sorted(_images(folder))
  return [images[i] for i in rng.permutation(len(images))]


def _copy(images: list[Path], folder: Path) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for path in images:
    if os.path.exists(folder / path.name):
      raise SystemExit(f'{folder / path.name} is there already: write to an empty folder.')
    shutil.copy(path, folder)


if __name__ == '__main__':
  main()
