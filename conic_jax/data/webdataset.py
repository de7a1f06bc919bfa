"""Images in tar files, as WebDataset has them: a sample's files are neighbours that differ in their ends.

What comes before the first point of a file's name is its sample's; 000.jpg and 000.cls are an image and its
class. Images are read by their place in the tar, through an index that is built once and cached.
"""
import dataclasses
import functools
import itertools
import re
import tarfile
from collections.abc import Iterator

import numpy as np

from conic_jax.data import class_labels, kinds, mapped, parallel, shards, urls
from conic_jax.data.folder import EXTENSIONS
from conic_jax.errors import UserError

NAMES = 'classnames.txt'  # Beside the tars or one folder above: a class in each line.
_CLASS = 'cls'
_AT_A_TIME = 64  # Tars that are indexed.
_SAMPLE = re.compile(r'((?:.*/)?[^./][^./]*)\.([^/]*)')
_END = bytes(2 * tarfile.BLOCKSIZE)


class WebDataset:
  """The images of tar files, in their order.

  Args:
    location: a tar, a folder of tars, or a pattern such as shard-{000000..000999}.tar; local or a URL.
    split: which of them; see `shards.find`.
    cache: folder of the indexes.
    image: the ending of the images where samples have several, such as left.jpg; '' takes the only one.
    label: the ending of the labels; '' is cls, 'none' reads none.

  Attributes:
    description: how many tars and classes there are, and what was left out.

  Raises:
    UserError: if there are no such tars, one is cut short, or it is not certain which image is meant.
  """

  def __init__(self, location: str, split: str, cache: str, image: str = '', label: str = ''):
    self._paths = shards.find(location, split, kinds.SUFFIXES['wds'], 'tar')
    self._stamps = shards.stamps(self._paths, 'tar')
    asked = image.lower().lstrip('.'), label.lower().lstrip('.') or _CLASS
    origin = {'kind': 'tar', 'files': self._stamps, 'image': asked[0], 'label': asked[1]}
    self._table = mapped.load(cache, self._paths[0].rpartition('/')[2], origin,
                              functools.partial(_build, self._paths, *asked))
    facts = self._table.facts
    self._counts, self._ends = facts['counts'], np.cumsum(facts['counts'])
    self.num_images = int(self._ends[-1])
    if not self.num_images:
      raise UserError(f'The {len(self._paths)} tar files of {location} hold no image: files that end in '
                      f'{image or " ".join(EXTENSIONS)} were looked for.')
    if label not in ('', class_labels.NO_LABEL) and not facts['labels']:
      raise UserError(f"No sample of {location} has a file that ends in '{label}': set config.data.label to "
                      "the ending of the labels, to '' for cls or to 'none'.")
    names = _class_names(self._paths[0]) if facts['labels'] else ()
    self.class_names, self._label_of_code = class_labels.classes(facts['labels'], names, location)
    self.num_classes = len(self.class_names)
    left_out = f'; left out: {facts["links"]} links' if facts['links'] else ''
    classes = f'{self.num_classes} classes' if self.num_classes else 'no classes'
    self.description = f'{len(self._paths)} tar files, {classes}{left_out}'

  def read(self, ids: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Reads images; see `sources.Source`."""
    ids = np.asarray(ids, np.int64)
    found = self._table.parts['records'][ids]
    tars = np.searchsorted(self._ends, ids, side='right')
    places = list(zip(tars.tolist(), found['start'].tolist(), found['length'].tolist(), strict=True))
    return parallel.map_blocks(self._read, places), self._labels_of(found['label'])

  def labels(self) -> np.ndarray:
    """The labels of all images; see `sources.Source`."""
    return self._labels_of(self._table.parts['records']['label'])

  def name(self, id: int) -> str:
    """The tar and the name in it."""
    return f'{self._paths[int(np.searchsorted(self._ends, id, side="right"))]}/{self._table.string(id)}'

  def inventory(self) -> Iterator[list]:
    """The number of tars, and [name and number of images, bytes, 'bytes'] each; see `inventory.entries`."""
    yield [f'{len(self._paths)} tar files', self.num_images, 'images']
    start = len(urls.common_folder(self._paths))
    for (path, size, _), count in zip(self._stamps, self._counts, strict=True):
      yield [f'{path[start:]} with {count} images', size, 'bytes']

  def _labels_of(self, codes):
    return np.append(self._label_of_code, np.int32(-1))[codes]

  def _read(self, place):
    tar, start, length = place
    try:
      return urls.read(self._paths[tar], start, length)
    except OSError:
      return b''


class _Header(tarfile.TarInfo):
  """Reads the header of a plain file twice as fast, as far as an index needs it, and others as ever."""

  @classmethod
  def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
    """A member from its header."""
    size, checksum = buf[124:135], buf[148:154]
    plain = (len(buf) == tarfile.BLOCKSIZE and buf[257:263] == b'ustar\0' and buf[156:157] in (b'0', b'x')
             and not buf[345] and size.isdigit() and checksum.isdigit())
    if not plain or int(checksum, 8) != sum(buf) - sum(buf[148:156]) + 8 * ord(' '):
      return super().frombuf(buf, encoding, errors)
    header = cls(buf[:100].partition(b'\0')[0].decode(encoding, errors))
    header.size, header.type = int(size, 8), bytes(buf[156:157])
    return header


@dataclasses.dataclass
class TarIndex:
  """Where the images of a tar are.

  Attributes:
    places: start and length in bytes of each.
    names: their names in the tar.
    labels: their labels, None where there is none.
    links: images left out because they are links.
    alone: the first label without an image, '' if there is none.
  """
  places: list[tuple[int, int]] = dataclasses.field(default_factory=list)
  names: list[str] = dataclasses.field(default_factory=list)
  labels: list[int | str | None] = dataclasses.field(default_factory=list)
  links: int = 0
  alone: str = ''


@dataclasses.dataclass(frozen=True)
class _File:
  """A file in a tar; `content` is read of labels only."""
  sample: str
  ending: str
  name: str
  start: int
  length: int
  is_link: bool
  content: bytes | None


def index_tar(path: str, image: str, label: str) -> TarIndex:
  """Where the images of a tar are.

  Args:
    path: the tar.
    image: the ending of images; '' for any.
    label: the ending of labels, or 'none'.

  Raises:
    UserError: if the tar is cut short or no tar, or samples have several images.
  """
  index = TarIndex()
  try:
    for _, sample in itertools.groupby(_files(path, label), key=lambda file: file.sample):
      _add_sample(index, path, list(sample), image)
  except (tarfile.TarError, EOFError) as error:
    raise UserError(f'{path} cannot be read as a tar ({error}): it is cut short, damaged or compressed; copy '
                    'it again, or unpack it if its name should end in .gz.') from None
  except OSError as error:
    raise UserError(f'{path} cannot be read ({error}): look at the disk or the network.') from None
  return index


def _files(path: str, label: str) -> Iterator[_File]:
  with urls.stream(path) as file, tarfile.open(fileobj=file, mode='r:', tarinfo=_Header) as tar:
    while (member := tar.next()) is not None:
      tar.members = []  # Else it keeps every member.
      match = _SAMPLE.fullmatch(member.name.removeprefix('./'))
      if match and not member.isdir():
        ending = match[2].lower()
        opened = tar.extractfile(member) if ending == label else None
        yield _File(match[1], ending, member.name, member.offset_data, member.size, not member.isreg(),
                    opened.read() if opened else None)
    _check_end(file, tar.offset, path)


def _add_sample(index, path, files, image):
  images = [file for file in files if _is_image(file.ending, image)]
  index.links += sum(file.is_link for file in images)
  images = [file for file in images if not file.is_link]
  labels = [file for file in files if file.content is not None]
  if len(images) > 1:
    raise UserError(_several(path, *images[:2]))
  if images:
    index.places.append((images[0].start, images[0].length))
    index.names.append(images[0].name)
    index.labels.append(_label_text(path, labels[-1]) if labels else None)
  elif labels:
    index.alone = index.alone or labels[0].name


def _build(paths, image, label, writer):
  codes, counts, links, unlabelled, alone = class_labels.LabelCodes(), [], 0, '', ''
  writer.add('records', [])
  writer.add_strings([])
  for some in mapped.blocks(paths, _AT_A_TIME):
    indexes = parallel.map_blocks(lambda path: index_tar(path, image, label), some, block=1)
    for path, found in zip(some, indexes, strict=True):
      records = np.empty(len(found.places), mapped.RECORD)
      records['start'] = [start for start, _ in found.places]
      records['length'] = [min(length, mapped.LONGEST) for _, length in found.places]
      records['label'] = codes.encode(found.labels, path)
      writer.add('records', records)
      writer.add_strings(found.names)
      counts.append(len(records))
      links += found.links
      alone = alone or (found.alone and f'{path}/{found.alone}')
      if not unlabelled and None in found.labels:
        unlabelled = f'{path}/{found.names[found.labels.index(None)]}'
  if alone and unlabelled:
    raise UserError(f'{unlabelled} has no label and {alone} no image: the files of a sample must have one '
                    'name and lie side by side, as tar --sort=name writes them.')
  return {'counts': counts, 'labels': codes.values, 'links': links}


def _is_image(ending, asked):
  return ending == asked if asked else f'.{ending}'.endswith(EXTENSIONS)


def _several(path, first, second):
  return (f'A sample of {path} has several images, {first.name} and {second.name}: set config.data.image to '
          f"the ending of those that are meant, such as '{second.ending}', or give every image a name of its "
          'own before the first point.')


def _label_text(path, file):
  try:
    return class_labels.from_text(file.content.decode())
  except UnicodeDecodeError:
    raise UserError(f"{path}/{file.name} is no text: set config.data.label to the ending of labels that are, "
                    "or to 'none'.") from None


def _check_end(file, offset, path):
  """A tar ends in two empty blocks; without them nothing tells whether all of it is there."""
  file.seek(max(0, offset))
  if file.read(len(_END)) != _END:
    raise UserError(f'{path} is cut short or damaged: at byte {offset:,} a tar would end in two empty '
                    'blocks; copy it again.')


def _class_names(path):
  folder = path.rpartition('/')[0]
  for place in (folder, folder.rpartition('/')[0]):
    try:
      text = urls.read_whole(f'{place}/{NAMES}').decode('utf-8-sig')
    except (OSError, UnicodeDecodeError):
      continue
    return tuple(line.strip() for line in text.splitlines() if line.strip())
  return ()
