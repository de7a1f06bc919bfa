"""The rows outside the window in a folder of each process's own, and a copy of each checkpoint in a bucket.

In the bucket, `process-p-of-P` has what process p of P saved: `S.json` names the objects of checkpoint S,
which are `rows-K-S'`, the rows of segment K as they were at S' and still are at S, and the first process's
`rates-S`. A checkpoint is whole if all P processes have its S.json, which each writes last. One that resumes
from it uses its own folder only if that is of this very save; else it fetches the rows of its share, whatever
number of processes saved them. So a lost disk and another number of processes are the same.
"""
import contextlib
import dataclasses
import functools
import re
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from conic_jax.errors import UserError, first_line
from conic_jax.hardware.processes import run_everywhere
from conic_jax.memories import sealed
from conic_jax.memories.delayed import Rates, write_rates
from conic_jax.memories.host import HostSettings
from conic_jax.memories.journal import REMEDY
from conic_jax.memories.row_store import Layout, Store, Stored, Written, stored_of
from conic_jax.memories.store import closed_store, open_store
from conic_jax.memories.store_folder import SETTINGS, check_room, differences_from

_SEGMENT = 2**26  # Bytes of rows in an object, at most.
_AT_ONCE = 4  # Objects in memory, on their way.
_FOLDER = re.compile(r'process-(\d+)-of-(\d+)')
_MANIFEST = re.compile(r'(\d+)\.json')


class _Object(NamedTuple):
  """An object of a bucket: its name, size in bytes, and CRC-32, begun with that of the name."""
  name: str
  size: int
  crc: int


class CopiedStore:
  """A store whose changed rows are known.

  Attributes:
    changed: the segments with rows that changed since the last copy.
  """

  def __init__(self, store: Store, rows_in_segment: int, distrust: Any):
    self._store, self._distrust = store, distrust
    self._rows_in_segment = rows_in_segment
    self.changed: set[int] = set()

  @property
  def num_segments(self) -> int:
    """Segments of this process's rows."""
    return -(-len(self._store.layout.ids) // self._rows_in_segment)

  def read(self, ids: np.ndarray) -> Stored:
    """As `Store.read`; damage is mended by the next start."""
    try:
      return self._store.read(ids)
    except UserError as error:
      raise UserError(f'{str(error).partition(": ")[0]}: {self._distrust()}') from None

  def write(self, ids: np.ndarray, rows: np.ndarray, seen: np.ndarray) -> None:
    """As `Store.write`."""
    self._store.write(ids, rows, seen)
    self.changed.update(np.unique((ids - self._store.layout.ids.start) // self._rows_in_segment).tolist())

  def checkpoint(self, step: int, kept: Sequence[int]) -> None:
    """As `Store.checkpoint`."""
    self._store.checkpoint(step, kept)

  def segment(self, index: int) -> Written:
    """The written rows of a segment."""
    ids = np.array(self._store.layout.ids[index * self._rows_in_segment:(index + 1) * self._rows_in_segment])
    stored = self.read(ids)
    return Written(ids[stored.written], stored.rows[stored.written], stored.seen[stored.written])

  def close(self) -> None:
    """As `Store.close`."""
    self._store.close()


class CopiedFolder:
  """A process's folder and its part of the bucket; the methods are those of `StoreFolder`."""

  def __init__(self, settings: HostSettings, kind: str, layout: Layout, depends_on: Mapping[str, Any]):
    assert settings.remote is not None
    self._settings, self._kind, self.layout, self._depends_on = settings, kind, layout, depends_on
    self._folder, self._remote = settings.folder, settings.remote
    self._entry = np.dtype([('id', '<i8'), ('time', '<i8'), ('row', '<f4', (2, layout.dim))])
    self._rows_in_segment = max(1, _SEGMENT // self._entry.itemsize)
    self._done, self._in_place = 0, False
    self._manifests: list[dict[str, Any]] = []
    self._store: CopiedStore | None = None
    self._rates: Rates | None = None
    self._objects: dict[int, _Object] = {}  # Of the last copy, by segment.
    self._named: dict[int, set[str]] = {}  # By the manifests, by step.

  @property
  def takes_part(self) -> bool:
    """Whether this process has anything to store: rows on the devices are described by the first alone."""
    return self.layout.process_index < self.layout.process_count

  def begin(self) -> None:
    """Clears what another run left."""
    def clear() -> None:
      self._clear()
      if self.layout.process_index == 0:
        with self._reached('written'):
          for folder in self._folders():
            _delete(folder, _names(folder))
          self._remote.mkdir(parents=True, exist_ok=True)
          (self._remote / SETTINGS).write_bytes(sealed.encoded(self._depends_on))
    run_everywhere(clear)

  def check(self, step: int, done: int) -> None:
    """Finds the copy of a checkpoint. Nothing is changed.

    Raises:
      UserError: if it is missing or damaged, or settings that the rows depend on have changed.
    """
    self._done = done
    with self._reached('read'):
      path = self._remote / SETTINGS
      if not path.exists():
        raise UserError(f'{self._remote} holds no rows, which the checkpoint needs: {REMEDY}')
      differences_from(sealed.decoded(path.read_bytes(), path), self._depends_on, self._remote)
      self._manifests = self._find(step)
      own = self._own(step)
      self._in_place = (len(self._manifests) == self.layout.process_count and self.takes_part
                        and own.is_file() and own.read_bytes() == self._manifest(step).read_bytes())

  def open(self, step: int | None) -> CopiedStore:
    """Opens this process's store, with the rows of a checkpoint; None for a new run.

    Raises:
      UserError: if the bucket cannot be read or the disk is too small.
    """
    self._check_room()
    if step is None:
      store = open_store(self._kind, self._folder, self.layout)
    else:
      store = self._opened_in_place(step) or self._filled(step)
    self._store = CopiedStore(store, self._rows_in_segment, self._distrust)
    if step is not None:
      self._know_objects(step)
    return self._store

  def rates(self, *, momentum: float, weight_decay: float) -> Rates:
    """Opens the learning rates so far."""
    path = self._folder / f'rates-{self.layout.process_index}'
    self._folder.mkdir(parents=True, exist_ok=True)
    if self._done:
      write_rates(path, self._fetched_rates())
    self._rates = Rates(path, self._done, momentum=momentum, weight_decay=weight_decay)
    return self._rates

  def sync(self, step: int, kept: Sequence[int]) -> str | None:
    """Copies what changed to the bucket, and deletes what no checkpoint needs.

    Returns:
      Why it could not be done; None if it was.
    """
    if not self.takes_part:
      return None
    try:
      if self.layout.process_index == 0:
        self._remove_others(kept)
      self._copy(step)
      self._remove_own(step, kept)
    except UserError:
      raise
    except Exception as error:  # Each kind of bucket has its own.
      return f'{self._remote} could not be written ({first_line(error, 300)})'
    return None

  # ---- Into the bucket ----------------------------------------------------------------------------

  def _copy(self, step):
    folder = self._bucket_folder
    folder.mkdir(parents=True, exist_ok=True)
    objects = self._objects | (self._copied_segments(self._store, step) if self._store else {})
    rates = None
    if self.layout.process_index == 0 and self._rates is not None:
      rates = _put(folder, f'rates-{step}', self._rates.known.tobytes())
    manifest = sealed.encoded({**self._identity(), 'step': step, 'save': uuid.uuid4().hex, 'rates': rates,
                               'objects': {str(index): made for index, made in objects.items()}})
    self._own(step).write_bytes(manifest)
    self._manifest(step).write_bytes(manifest)
    self._objects, self._named[step] = objects, _named(objects.values(), rates)
    if self._store:
      self._store.changed.clear()

  def _copied_segments(self, store, step):
    changed, objects = sorted(store.changed), {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
      for first in range(0, len(changed), _AT_ONCE):
        group = changed[first:first + _AT_ONCE]
        contents = [self._content(store.segment(index)) for index in group]
        names = [f'rows-{index}-{step}' for index in group]
        put = functools.partial(_put, self._bucket_folder)
        objects |= zip(group, pool.map(put, names, contents), strict=True)
    return objects

  def _content(self, rows):
    entries = np.empty(len(rows.ids), self._entry)
    entries['id'], entries['row'], entries['time'] = rows.ids, rows.rows, rows.seen + 1
    return entries.tobytes()

  def _remove_own(self, step, kept):
    """Deletes this process's manifests of other steps than these, and the objects that no manifest names."""
    folder, needed = self._bucket_folder, {step, *kept}
    names, manifests = _names(folder), {f'{number}.json' for number in needed}
    _delete(folder, [name for name in names if _MANIFEST.fullmatch(name) and name not in manifests])
    for number in needed - self._named.keys():
      if f'{number}.json' in names:
        read = self._read_manifest(folder / f'{number}.json')
        self._named[number] = _named(read['objects'].values(), read['rates'])
    self._named = {number: named for number, named in self._named.items() if number in needed}
    named = manifests.union(*self._named.values())
    _delete(folder, [name for name in names if not _MANIFEST.fullmatch(name) and name not in named])
    for path in self._folder.glob('copy-*.json'):
      if path.name not in {self._own(number).name for number in needed}:
        path.unlink()

  def _remove_others(self, kept):
    """Deletes what other numbers of processes saved for steps that are not kept, before this one is."""
    for folder in self._folders():
      if _count(folder) != self.layout.process_count:
        names, manifests = _names(folder), {f'{number}.json' for number in kept}
        _delete(folder, [name for name in names if _MANIFEST.fullmatch(name) and name not in manifests])
        if not manifests & set(names):
          _delete(folder, [name for name in names if not _MANIFEST.fullmatch(name)])

  # ---- From the bucket ----------------------------------------------------------------------------

  def _find(self, step):
    """The manifests of a step, of all processes that saved it."""
    counts = sorted({_count(folder) for folder in self._folders()})
    for count in counts:
      paths = [self._remote / f'process-{index}-of-{count}' / f'{step}.json' for index in range(count)]
      with ThreadPoolExecutor(_AT_ONCE) as pool:
        if all(pool.map(lambda path: path.exists(), paths)):
          return list(pool.map(self._read_manifest, paths))
    raise UserError(f'{self._remote} holds no whole copy of the rows of step {step}: {_older(step)}')

  def _read_manifest(self, path):
    try:
      stated = sealed.decoded(path.read_bytes(), path)
    except UserError:
      raise UserError(f'{path} is damaged: {_older(int(path.stem))}') from None
    wanted = self._identity()
    for name in ('num_instances', 'dim', 'seed'):
      if stated.get(name) != wanted[name]:
        raise UserError(f'{path} is of another run: {name} was {stated.get(name)!r}, is {wanted[name]!r}.')
    return stated

  def _fetched(self) -> Iterator[Written]:
    """This process's rows as the manifests have them."""
    own = self.layout.ids
    wanted = []
    for manifest in self._manifests:
      ids, size = self._ids(manifest), manifest['rows_in_segment']
      folder = self._remote / f'process-{manifest["process_index"]}-of-{manifest["process_count"]}'
      for index, made in manifest['objects'].items():
        held = ids[int(index) * size:(int(index) + 1) * size]
        if held.start < own.stop and own.start < held.stop:
          wanted.append((folder, _Object(*made)))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
      for first in range(0, len(wanted), _AT_ONCE):
        for content in pool.map(lambda pair: self._get(*pair), wanted[first:first + _AT_ONCE]):
          entries = np.frombuffer(content, self._entry)
          entries = entries[(entries['id'] >= own.start) & (entries['id'] < own.stop)]
          stored = stored_of(entries)
          yield Written(entries['id'], stored.rows, stored.seen)

  def _fetched_rates(self):
    first = self._manifests[0]
    content = self._get(self._remote / f'process-0-of-{first["process_count"]}', _Object(*first['rates']))
    return np.frombuffer(content, '<f4')[:self._done]

  def _get(self, folder, wanted):
    with self._reached('read'):
      content = (folder / wanted.name).read_bytes()
    if len(content) != wanted.size or _crc(wanted.name, content) != wanted.crc:
      raise UserError(f'{folder / wanted.name} is damaged: {_older(self._manifests[0]["step"])}')
    return content

  def _ids(self, manifest):
    return Layout(**{name: manifest[name] for name in (
      'num_instances', 'dim', 'seed', 'process_index', 'process_count')}).ids

  # ---- The process's own folder -------------------------------------------------------------------

  def _opened_in_place(self, step):
    """The store that lies in the folder; None if it is of another save, damaged or not there."""
    if self._in_place:
      with contextlib.suppress(UserError):
        return open_store(self._kind, self._folder, self.layout, step)
    return None

  def _filled(self, step):
    self._clear()
    store = closed_store(self._kind, self._folder, self.layout)
    store.fill(step, self._fetched())
    return store

  def _know_objects(self, step):
    """Takes over what the bucket holds of these rows; the rest is copied with the next checkpoint."""
    manifest = self._manifests[self.layout.process_index] if (
      len(self._manifests) == self.layout.process_count) else None
    if manifest and manifest['rows_in_segment'] == self._rows_in_segment:
      self._objects = {int(index): _Object(*made) for index, made in manifest['objects'].items()}
      with self._reached('read'):
        self._own(step).write_bytes(self._manifest(step).read_bytes())
    elif self._store:
      self._store.changed.update(range(self._store.num_segments))

  def _check_room(self):
    part, settings = len(self.layout.ids), self._settings
    share = -(-settings.batch_size // self.layout.process_count)
    check_room(dataclasses.replace(settings, batch_size=share), self._kind,
               Layout(part, self.layout.dim, self.layout.seed))

  def _distrust(self):
    """Makes the next start fetch the rows; says so."""
    for path in self._folder.glob('copy-*.json'):
      path.unlink()
    return f'run the same command again, which fetches the rows from {self._remote}.'

  def _clear(self):
    shutil.rmtree(self._folder, ignore_errors=True)
    self._folder.mkdir(parents=True)

  def _own(self, step):
    return self._folder / f'copy-{step}.json'

  # ---- Names --------------------------------------------------------------------------------------

  @property
  def _bucket_folder(self):
    return self._remote / f'process-{self.layout.process_index}-of-{self.layout.process_count}'

  def _manifest(self, step):
    return self._bucket_folder / f'{step}.json'

  def _folders(self):
    return [self._remote / name for name in _names(self._remote) if _FOLDER.fullmatch(name)]

  def _identity(self):
    return {**dataclasses.asdict(self.layout), 'rows_in_segment': self._rows_in_segment}

  @contextlib.contextmanager
  def _reached(self, verb):
    """Tells of a bucket that cannot be read or written."""
    try:
      yield
    except UserError:
      raise
    except Exception as error:  # Each kind of bucket has its own.
      raise UserError(f'{self._remote} could not be {verb} ({first_line(error, 300)}): see that it is there '
                      'and can be reached, and run the same command again.') from error


def _put(folder: epath.Path, name: str, content: bytes) -> _Object:
  (folder / name).write_bytes(content)
  return _Object(name, len(content), _crc(name, content))


def _crc(name: str, content: bytes) -> int:
  return zlib.crc32(content, zlib.crc32(name.encode()))


def _named(objects: Any, rates: Any) -> set[str]:
  return {name for name, *_ in [*objects, *([rates] if rates else [])]}


def _names(folder: epath.Path) -> list[str]:
  """The names in a folder of a bucket; none if there is nothing."""
  try:
    return sorted(path.name for path in folder.iterdir())
  except FileNotFoundError:
    return []


def _count(folder: epath.Path) -> int:
  """The number of processes that saved, by the name of a folder of one."""
  return int(folder.name.rpartition('-')[2])


def _delete(folder: epath.Path, names: Sequence[str]) -> None:
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      (folder / name).unlink()


def _older(step: int) -> str:
  return f"move checkpoint {step} out of the run's checkpoints, and the one before it is taken."
