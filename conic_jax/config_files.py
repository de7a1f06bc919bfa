"""Where configs are: files that a path names, and those of the library, by name."""
import sys
import types
from pathlib import Path

from conic_jax.data import kinds

_PACKAGE = 'configs'
# The preset for a folder of images, of configs that have no plain 'folder'.
_OF_FOLDERS = {'semi': 'folder_1pct'}


def own_folder() -> Path:
  """The library's configs: inside the package once installed, beside it in a checkout."""
  package = Path(__file__).parent
  inside = package / _PACKAGE
  return inside if inside.is_dir() else package.parent / _PACKAGE


def find(path: str) -> str:
  """The file of a config, with the preset after its colon if there is one.

  Args:
    path: FILE[:PRESET], or NAME[:PRESET] of a config of the library, such as conic:folder. configs/NAME.py
      is the library's too where there is no such file.

  Returns:
    FILE[:PRESET]; `path` itself if it names no config.
  """
  file, colon, preset = path.partition(':')
  if Path(file).is_file():
    return path
  named = Path(file)
  if named.parent in (Path(), Path(_PACKAGE)):
    own = own_folder() / f'{named.name.removesuffix(".py")}.py'
    if is_config(own):
      return f'{own}{colon}{preset}'
  return path


def with_images(config: str, images: str, preset: str | None = None) -> tuple[str, dict[str, str]]:
  """The config for some images, and the fields that name them.

  Args:
    config: FILE or NAME.
    images: a folder, a list, tar or Parquet files, here or in a bucket, or a pattern of files; anything else
      is a preset that has its own images.
    preset: the preset for a folder; None for the config's usual one.

  Returns:
    FILE:PRESET or NAME:PRESET, and values by field.
  """
  if not ('://' in images or kinds.is_pattern(images) or Path(images).expanduser().exists()):
    return f'{config}:{images}', {}
  kind = kinds.kind_of(images)
  return (f'{config}:{preset or _OF_FOLDERS.get(config, "folder")}',
          {'data.dir': images, **({} if kind == 'folder' else {'data.name': kind})})


def run_of(images: str) -> str | None:
  """The usual run of a local folder or file of images, named as it is; None for other images."""
  path = Path(images).expanduser()
  if not images or not path.exists():
    return None
  return f'runs/{path.resolve().name if path.is_dir() else path.resolve().stem}'


def is_config(path: Path) -> bool:
  """Whether a file has a `get_config`."""
  return path.is_file() and 'def get_config(' in path.read_text(errors='ignore')


def available() -> list[str]:
  """The configs that can be given: files of configs/ here, or else the names of the library's."""
  here = sorted(str(path) for path in Path(_PACKAGE).glob('*.py') if is_config(path))
  return here or own_names()


def own_names() -> list[str]:
  """The names of the library's configs."""
  return sorted(path.stem for path in own_folder().glob('*.py') if is_config(path))


def let_import(path: Path) -> None:
  """Lets a config import others as `configs.NAME`, whatever the working directory.

  Those beside it come before the library's if its folder is named configs, and its project can be imported.
  """
  package = sys.modules.setdefault(_PACKAGE, types.ModuleType(_PACKAGE))
  folders = list(getattr(package, '__path__', ()))
  beside = path.resolve().parent
  wanted = [beside, own_folder()] if beside.name == _PACKAGE else [own_folder()]
  package.__path__ = [*folders, *(str(folder) for folder in wanted if str(folder) not in folders)]
  project = str(beside.parent)
  if beside != own_folder() and project not in sys.path:
    sys.path.append(project)
