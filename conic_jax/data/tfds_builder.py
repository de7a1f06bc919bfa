"""Opens a data set of TensorFlow Datasets and its splits, and says what is wrong where it cannot."""
import difflib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from conic_jax.data import files
from conic_jax.errors import UserError, listed

_OTHERS = ("for a folder of images set config.data.name to 'folder' and config.data.dir to the folder, for "
           "tar or Parquet files or a list 'wds', 'parquet' or 'list', for a set that needs no download "
           "'photos'.")


def open_builder(name: str, data_dir: str) -> Any:
  """Opens a data set that is prepared.

  Args:
    name: 'cifar10', or 'name/config:version'.
    data_dir: TFDS's data_dir, '' for its default.

  Raises:
    UserError: if it is unknown, not prepared or damaged.
  """
  data_dir = os.path.expanduser(data_dir)
  if not name:
    raise UserError(f'config.data.name is empty: give the name of a data set of TFDS; {_OTHERS}')
  try:
    builder = tfds.builder(name, data_dir=data_dir or None)
  except tfds.core.DatasetNotFoundError:
    raise UserError(_not_found(name, data_dir)) from None
  except Exception as error:  # TFDS parses files and asks hubs; whatever it meets is raised as it is.
    raise UserError(_cannot_open(name, data_dir, error)) from None
  if not builder.info.splits:
    raise UserError(_elsewhere(builder.name, str(builder.data_path.parent), data_dir)
                    or _how_to_prepare(builder))
  return builder


def shards_of(builder: Any, split: str) -> Sequence[Any]:
  """The parts of files that a split expression names.

  Raises:
    UserError: if it names no image, one twice, or a split that there is not.
  """
  full_name, splits = builder.info.full_name, ', '.join(builder.info.splits)
  try:
    shards = builder.info.splits[split].file_instructions
  except (ValueError, KeyError) as error:
    raise UserError(f"The data set '{full_name}' has no split '{split}' ({_first_line(error)}): it has "
                    f"{splits}, and slices of them such as 'train[:10%]'.") from None
  if sum(shard.take for shard in shards) <= 0 or any(shard.take < 0 for shard in shards):
    raise UserError(f"The split '{split}' of '{full_name}' holds no image: choose a larger slice of "
                    f'{splits}.')
  ends: dict[str, int] = {}
  for shard in sorted(shards, key=lambda shard: (str(shard.filename), shard.skip)):
    if shard.skip < ends.get(str(shard.filename), 0):
      raise UserError(f"The split '{split}' of '{full_name}' names some images twice: choose slices that do "
                      'not overlap.')
    ends[str(shard.filename)] = shard.skip + shard.take
  return shards


def _not_found(name, data_dir):
  base = _base(name)
  if found := _elsewhere(base, '', data_dir):
    return found
  there = files.folders(data_dir) if data_dir else set()
  if base in there:
    folder = os.path.join(data_dir, base)
    prepared = sorted(files.folders(folder))
    if not prepared or name in (base, *(f'{base}:{version}' for version in prepared)):
      return (f'{folder} has no data set that is whole: dataset_info.json, features.json or all files are '
              'missing there; prepare it again.')
    return (f"{data_dir} has no '{name}', but {base} with {listed(prepared)}: set config.data.name to one of "
            f"them, such as '{base}:{prepared[-1]}'.")
  near = _near(base, there)
  return f"There is no data set '{name}' in TFDS{_did_you_mean(near)}: {_OTHERS}"


def _cannot_open(name, data_dir, error):
  reason = f'{type(error).__name__}: {_first_line(error)}'
  if ':' in name and not name.rpartition(':')[2][:1].isdigit():
    return (f"TFDS asks a hub for '{name}', and it cannot be opened ({reason}): nothing is downloaded here; "
            "save its images in a folder and set config.data.name to 'folder', or prepare a set of TFDS.")
  if not isinstance(error, (ValueError, AssertionError)) and data_dir:
    return (f"The data set '{name}' in {data_dir} cannot be opened ({reason}): its dataset_info.json or "
            'features.json is damaged or missing; prepare the data set again.')
  folder = os.path.join(data_dir, _base(name))
  if data_dir and files.folders(folder):
    return (f"TFDS cannot open '{name}' in {folder} ({reason}): set config.data.name to a configuration and "
            f'version that is there ({listed(sorted(files.folders(folder)))}); if it is, its '
            'dataset_info.json or features.json is damaged: prepare the data set again.')
  return (f"TFDS cannot open '{name}'{_did_you_mean(_near(_base(name), set()))} ({reason}): set "
          'config.data.name to a configuration and version that it knows.')


def _base(name):
  return name.partition('/')[0].partition(':')[0]


def _plain(name):
  return name.lower().replace('-', '').replace('_', '')


def _near(base, there):
  """Names like this one, of all that are known and of the folders that are there; the same letters first."""
  known = {*tfds.list_builders(with_community_datasets=False), *there}
  same = sorted(name for name in known if _plain(name) == _plain(base))
  return same or difflib.get_close_matches(base.lower(), known)


def _did_you_mean(names):
  return f' (did you mean {" or ".join(map(repr, names))}?)' if names else ''


def _elsewhere(base, looked_in, data_dir):
  """Where the data set lies if config.data.dir is a level too deep or too high; '' if it does not."""
  if not data_dir:
    return ''
  deep = os.path.abspath(data_dir) if not files.is_remote(data_dir) else data_dir.rstrip('/')
  above = [deep]
  for _ in range(3):
    above.append(os.path.dirname(above[-1]))
  candidates = [parent for child, parent in itertools.pairwise(above) if os.path.basename(child) == base]
  candidates += [os.path.join(deep, name) for name in sorted(files.folders(deep)) if name != base]
  for root in candidates:
    if root != looked_in and base in files.folders(root) and files.folders(os.path.join(root, base)):
      return f"The data set '{base}' is not in {data_dir} but in {root}: set config.data.dir to that."
  return ''


def _how_to_prepare(builder):
  name, root = builder.info.full_name, str(builder.data_path).removesuffix(f'/{builder.info.full_name}')
  command = f'tfds build {name.rpartition("/")[0]} --data_dir {root}'
  manual = getattr(builder, 'MANUAL_DOWNLOAD_INSTRUCTIONS', None)
  if not manual:
    return (f"The data set '{name}' is not prepared in {root}: run `{command}`, or set "
            'config.data.dir.')
  folder = f'{root}/downloads/manual'
  return (f"The data set '{name}' is not prepared in {root}, and cannot be fetched for you: put "
          f'its files into {folder} ({" ".join(manual.split())}), then run `{command} --manual_dir '
          f'{folder}`, or set config.data.dir.')


def _first_line(error):
  return (str(error).strip().splitlines() or [''])[0][:200]
