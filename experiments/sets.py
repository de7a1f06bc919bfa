"""Writes the data folders that experiments train and test on.

  python -m experiments.sets OUT --cifar10=DIR --tinyimagenet=DIR --imagenet=DIR --camvid=DIR

Each DIR is the unpacked data set: train/CLASS/*, and test/CLASS/* or val/CLASS/*; for CamVid, SPLIT/images
and SPLIT/masks. A set is a folder with train/ (for pretraining), choose/ (other training images, for choosing
settings) and test/ (used once). A set that already exists is left unchanged:

  photographs   patches of ten photographs that ship with scikit-image and scikit-learn; no choose/
  digits        scikit-learn's handwritten digits, 8×8 and grey
  cifar3k, cifar5k, cifar20k, cifar45k, tiny5k   that many images of CIFAR-10 and of Tiny-ImageNet
  imagenet1k    photographs of ImageNet, one per class; choose/ and test/ are crops of the same photographs
  camvid        a link to the street frames and their masks
"""
import argparse
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
from PIL import Image

from conic_jax.data.photos import Photos

_SEED = 0
_CROP_AREA = (0.2, 0.5)
# Images to train on, to choose settings with, and to test on.
CIFAR10 = (('cifar3k', 3000, 2000, 5000), ('cifar5k', 5000, 5000, 5000), ('cifar20k', 20_000, 2000, 5000),
           ('cifar45k', 45_000, 5000, 10_000))


def main() -> None:
  """Writes every set whose images are given."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('out', type=Path)
  for name in ('cifar10', 'tinyimagenet', 'imagenet', 'camvid'):
    parser.add_argument(f'--{name}', type=Path)
  args = parser.parse_args()
  write(args.out / 'photographs', photographs)
  write(args.out / 'digits', digits)
  if args.cifar10:
    for name, count, chosen_by, tested_on in CIFAR10:
      write(args.out / name, share, args.cifar10, count, chosen_by, tested_on)
  if args.tinyimagenet:
    write(args.out / 'tiny5k', share, args.tinyimagenet, 5000, 2000, 5000)
  if args.imagenet:
    write(args.out / 'imagenet1k', crops_of_photographs, args.imagenet)
  if args.camvid and not (args.out / 'camvid').is_symlink():
    (args.out / 'camvid').symlink_to(args.camvid.resolve())


def write(out: Path, make: Callable[..., None], *of: Any) -> None:
  """Makes a set, whole or not at all; an existing one stays."""
  if not out.exists():
    unfinished = out.with_name(f'.{out.name}')
    shutil.rmtree(unfinished, ignore_errors=True)
    make(unfinished, *of)
    unfinished.rename(out)


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
  """1,000 digits to train on, 297 to choose settings with, 500 to test on."""
  bunch = sklearn.datasets.load_digits()
  order = np.random.default_rng(_SEED).permutation(len(bunch.target))
  for split, part in (('train', order[:1000]), ('choose', order[1000:1297]), ('test', order[1297:])):
    for index in part:
      path = out / split / str(bunch.target[index]) / f'{index:05d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.round(bunch.images[index] * 255 / 16).astype(np.uint8)).save(path)


def share(out: Path, source: Path, count: int, chosen_by: int, tested_on: int) -> None:
  """Equally many images per class to train on, others to choose settings with, held-out ones to test on."""
  held_out = next((source / name for name in ('test', 'val', 'validation') if (source / name).is_dir()), None)
  if held_out is None or not (source / 'train').is_dir():
    raise SystemExit(f'{source} has no train/ with test/ or val/ beside it.')
  rng = np.random.default_rng(_SEED)
  classes = sorted(path.name for path in (source / 'train').iterdir())
  for name in classes:
    images = _shuffled(source / 'train' / name, rng)
    if len(images) < (count + chosen_by) // len(classes):
      raise SystemExit(f'{source}/train/{name} has {len(images)} images, too few for {out.name.strip(".")}.')
    first, after = count // len(classes), (count + chosen_by) // len(classes)
    _copy(images[:first], out / 'train' / name)
    _copy(images[first:after], out / 'choose' / name)
    _copy(_shuffled(held_out / name, rng)[:tested_on // len(classes)], out / 'test' / name)


def crops_of_photographs(out: Path, source: Path) -> None:
  """Every photograph is a class: its crop must find it among all photographs."""
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
    shutil.copy(path, folder)


if __name__ == '__main__':
  main()
