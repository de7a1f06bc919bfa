"""Command-line parsing in which every error message lists the valid options."""
import argparse
import difflib
import functools
import operator
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from conic_jax import config_files, fields
from conic_jax.ending import process_ends_at_the_second_signal, stopped_by_signals
from conic_jax.errors import Help, Stopped, UserError
from conic_jax.hardware.compiler import prepare_compiler
from conic_jax.home import expand_argument
from conic_jax.terminal import print_line

# Minimum similarity of a suggested name, from 0 to 1.
_ALIKE = 0.7


class Parser(argparse.ArgumentParser):
  """Argument parser of the commands without a config; errors are one sentence."""

  def __init__(self, usage: str, description: str | None):
    super().__init__(usage=usage, description=description, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Parses the arguments, with ~ expanded."""
    given = sys.argv[1:] if args is None else args
    return super().parse_known_args([expand_argument(arg) for arg in given], namespace)

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}; {self.format_usage().strip()}.')


def whole_number(text: str) -> int:
  """Argument type for a whole number above 0."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
  return int(text)


def path_or_url(flag: str) -> Callable[[str], str | Path]:
  """Argument type for a file or folder of this machine, or one in a bucket, which stays text."""
  def parse_path(text: str) -> str | Path:
    if '://' not in text:
      return Path(text)
    if not text.startswith(('gs://', 's3://')):
      raise UserError(f"{flag}: '{text}' is neither a path of this machine nor gs://… or s3://….")
    return text
  return parse_path


def local_path(flag: str) -> Callable[[str], Path]:
  """Argument type for a file to write, on this machine or a mounted file system."""
  def parse_path(text: str) -> Path:
    if '://' in text:
      raise UserError(f"{flag}: '{text}' is in no folder of this machine.")
    return Path(text)
  return parse_path


# Seconds until a signal has been counted.
_HEARD = 0.1
# What Python says where /tmp and the like are full; some libraries ask for a folder while they are imported.
_NO_ROOM = 'No usable temporary directory'


def guarded(action: Callable[[], None], interrupted: str = 'interrupted') -> None:
  """Runs a command and sets its exit code: 0, 1 for a user error, 128 + signal number when stopped.

  A process of a cluster that cannot go on without another has ended before, with `watch.LOST`.

  Args:
    action: the command.
    interrupted: message after Ctrl-C if the command does not handle it.
  """
  prepare_compiler()
  with process_ends_at_the_second_signal() as signals, stopped_by_signals():
    try:
      _answered(action, interrupted)
    except Exception:
      time.sleep(_HEARD)
      if signals.last is None:
        raise
      # What a signal raises may come out as any error, as of a library that was being imported.
      print_line(f'conic_jax: {signals.last.name}: stopped at once; what was saved is kept.', sys.stderr)
      sys.exit(128 + signals.last)


def _answered(action: Callable[[], None], interrupted: str) -> None:
  """Runs a command, with an answer to every error that a user can cause."""
  try:
    action()
  except Help as text:
    print_line(str(text))
  except UserError as error:
    sys.exit(f'conic_jax: {error}')
  except FileNotFoundError as error:
    if _NO_ROOM not in str(error):
      raise
    sys.exit('conic_jax: There is no folder that temporary files can be written to: free room on the disk, '
             'or set TMPDIR to a folder on another.')
  except Stopped as stopped:
    print_line(f'conic_jax: {stopped}', sys.stderr)
    sys.exit(stopped.exit_code)
  except KeyboardInterrupt:
    print_line(f'conic_jax: {interrupted}', sys.stderr)
    sys.exit(128 + signal.SIGINT)


def run_with_config(run: Callable[[flags.FlagValues], None], values: flags.FlagValues, usage: str,
                    interrupted: str = 'interrupted') -> None:
  """Runs a command that takes a config, and sets its exit code.

  Args:
    run: the command, called with the parsed flags.
    values: the defined flags, 'config' among them.
    usage: usage text for --help.
    interrupted: as for `guarded`.
  """
  def action():
    parse(sys.argv, values, usage)
    run(values)
  guarded(action, interrupted)


def arguments(argv: list[str]) -> list[str]:
  """The command and its arguments, with ~ expanded, the config's file found, and fields joined to values."""
  expanded = joined([expand_argument(arg) for arg in argv], lambda flag: flag.startswith('--config.'))
  return [f'--config={config_files.find(arg.partition("=")[2])}' if arg.startswith('--config=') else arg
          for arg in expanded]


def define_config(values: flags.FlagValues, argv: list[str]) -> None:
  """Defines the flag --config, and those of its fields that `argv` gives."""
  config_flags.DEFINE_config_file(
    'config', None, 'A file of configs/ or the name of one, with a preset after a colon.',
    flag_values=values, sys_argv=arguments(argv))


def parse(argv: list[str], flag_values: flags.FlagValues, usage: str) -> None:
  """Parses the flags, 'config' among them, into `flag_values`.

  Args:
    argv: the command and its arguments.
    flag_values: the defined flags.
    usage: usage text for --help.

  Raises:
    Help: if --help is given.
    UserError: if a config, preset, field, value or flag is wrong; lists the valid ones.
  """
  argv = arguments(argv)
  path = next((arg.split('=', 1)[1] for arg in argv if arg.startswith('--config=')), None)
  if '--help' in argv or '--helpfull' in argv:
    raise Help(_help(usage, path, flag_values))
  if path is None:
    raise UserError('Which config? Give --config=FILE[:PRESET], such as '
                    f'--config=configs/conic.py:photos. Available: {_configs()}.')
  config = load(path)
  for arg in argv[1:]:
    if arg.startswith('--config.'):
      _check_field(config, arg.split('=')[0].removeprefix('--config.'))
  opened = [arg for arg in argv[1:] if _is_opened(config, arg)]
  argv = [arg for arg in argv if arg not in opened]
  try:
    rest = list(flag_values(argv))[1:]
  except flags.UnrecognizedFlagError as error:
    name = error.flagname
    hint = f' Did you mean --config.{name}?' if name in config else ''
    raise UserError(f'There is no flag --{name}; available: --config, --config.FIELD, '
                    f'{", ".join(_own_flags(flag_values))}.{hint}') from error
  except flags.Error as error:
    raise UserError(_wrong_value(config, argv, error)) from error
  if rest:
    raise UserError(f"'{rest[0]}' is no flag: settings are given as --config.FIELD=VALUE.")
  given = [arg.partition('=')[0] for arg in argv]
  for arg in opened:
    if (flag := arg.partition('=')[0]) in given:
      raise UserError(f'{flag} is given and left open too: give it once.')
    node, name = _place(flag_values['config'].value, flag.removeprefix('--config.'))
    node[name] = None


def _help(usage: str, path: str | None, flag_values: flags.FlagValues) -> str:
  """The usage, the command's own flags and, of a config that is named, every field."""
  own = '\n'.join(f'  {flag}  {flag_values[flag.removeprefix("--")].help}'
                  for flag in _own_flags(flag_values))
  settings = 'Add --config=FILE[:PRESET] to see all fields of a config.' if path is None else (
    f'Fields of {path}, as --config.FIELD=VALUE:\n{fields.describe(load(path))}')
  return f'{usage} Configs: {_configs()}.\n\nFlags:\n{own}\n\n{settings}'


def load(path: str) -> ConfigDict:
  """Loads FILE[:PRESET], or NAME[:PRESET] of the library's configs, ignoring all other flags."""
  path = config_files.find(path)
  config_files.let_import(Path(path.partition(':')[0]))
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file('config', None, flag_values=values,
                                           sys_argv=['', f'--config={path}'])
  try:
    values(['', f'--config={path}'])
  except (flags.Error, AttributeError, KeyError) as error:
    errors = _chain(error)
    if answer := next(filter(None, map(_wrong_in_file, errors)), None):
      raise UserError(answer) from error
    if not isinstance(error, flags.Error):
      raise
    raise UserError(str(errors[-1])) from error
  if not isinstance(holder.value, ConfigDict):
    raise UserError(f"There is no config file '{path.partition(':')[0]}'; available: {_configs()}.")
  return holder.value


def _chain(error: BaseException) -> list[BaseException]:
  """An error and its causes, the innermost last."""
  cause = error.__cause__ or error.__context__
  return [error] if cause is None else [error, *_chain(cause)]


def _wrong_in_file(error: BaseException) -> str | None:
  """Message for an invalid operation on a field inside a config file; None for any other error."""
  frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
  inside = frames[-1].f_locals if frames else {}
  node, name = inside.get('self'), inside.get('attribute', inside.get('key'))
  if not isinstance(node, ConfigDict) or not isinstance(name, str):
    return None
  configs = [value for frame in frames for value in frame.f_locals.values()
             if isinstance(value, ConfigDict) and 'task' in value]
  groups, prefix = next(((groups, prefix) for groups in map(_groups, configs) for prefix in groups
                         if groups[prefix] is node), ({'': node}, ''))
  if name not in node:
    return _no_field(groups, prefix, name) + (
      '' if _nearest(groups, prefix, name) else ' A field is added in `with config.unlocked():` alone.')
  if isinstance(error, TypeError):
    return f'{prefix}{name} takes {_a(node.get_type(name))} such as {node[name]!r}, not {inside["value"]!r}.'
  return f'{prefix}{name} is deleted in `with config.unlocked():` alone.'


def _configs() -> str:
  return ', '.join(config_files.available())


def _own_flags(flag_values: flags.FlagValues) -> list[str]:
  return sorted(f'--{name}' for name in flag_values if not name.startswith('config'))


def _check_field(config: ConfigDict, path: str) -> None:
  node, prefix, groups = config, 'config.', _groups(config)
  for name in path.split('.'):
    if not isinstance(node, ConfigDict):
      raise UserError(f'There is no {prefix}{name}; {prefix[:-1]} is a value.')
    if name not in node:
      raise UserError(_no_field(groups, prefix, name))
    node, prefix = node[name], f'{prefix}{name}.'


def set_fields(config: ConfigDict, given: Mapping[str, Any]) -> None:
  """Sets fields by name, 'optimizer.learning_rate'; 'auto' leaves one open that is not a word.

  Raises:
    UserError: if there is no such field, or the value is of another type.
  """
  for path, value in given.items():
    _check_field(config, path)
    node, name = _place(config, path)
    if isinstance(group := node[name], ConfigDict):
      raise UserError(_is_group(f'config.{path}', group))
    try:
      node[name] = (None if value == 'auto' and _can_open(node, name)
                    else tuple(value) if isinstance(value, list) else value)
    except TypeError as error:
      kind = node.get_type(name)
      raise UserError(f'config.{path} takes {_a(kind)}, not {value!r}.') from error


def _is_group(field: str, node: ConfigDict) -> str:
  return f'{field} is a group of settings: set one of {field}.{{{", ".join(sorted(node))}}}.'


def _groups(node: ConfigDict, prefix: str = 'config.') -> dict[str, ConfigDict]:
  """A config and all groups in it, by the prefix of their fields."""
  inner = (_groups(value, f'{prefix}{name}.') for name, value in node.items()
           if isinstance(value, ConfigDict))
  return functools.reduce(operator.or_, inner, {prefix: node})


def _no_field(groups: dict[str, ConfigDict], prefix: str, name: str) -> str:
  """Error message for an unknown field, with the valid ones."""
  if near := _nearest(groups, prefix, name):
    return f'There is no {prefix}{name}; did you mean {" or ".join(near)}?'
  return f'There is no {prefix}{name}; available: {", ".join(sorted(groups[prefix]))}.'


def _nearest(groups: dict[str, ConfigDict], prefix: str, name: str) -> list[str]:
  """Up to three fields with a similar name in this group, else with the same or a similar name in others."""
  if close := difflib.get_close_matches(name, groups[prefix], 3, _ALIKE):
    return [f'{prefix}{field}' for field in close]
  known = sorted({field for node in groups.values() for field in node})
  wanted = [name] if name in known else difflib.get_close_matches(name, known, 3, _ALIKE)
  return [f'{place}{field}' for field in wanted for place, node in groups.items() if field in node][:3]


def joined(argv: list[str], takes_value: Callable[[str], bool]) -> list[str]:
  """The arguments with '--FLAG VALUE' joined to '--FLAG=VALUE', of flags that take one."""
  whole: list[str] = []
  for arg in argv:
    last = whole[-1] if whole else ''
    waits = last.startswith('--') and '=' not in last and takes_value(last)
    if waits and not arg.startswith('--'):
      whole[-1] += f'={arg}'
    else:
      whole.append(arg)
  return whole


def _is_opened(config: ConfigDict, arg: str) -> bool:
  """Whether an argument, --config.FIELD=auto, leaves a field open; for string fields 'auto' is a value."""
  if not (arg.startswith('--config.') and arg.endswith('=auto')):
    return False
  return _can_open(*_place(config, arg.partition('=')[0].removeprefix('--config.')))


def _can_open(node: ConfigDict, name: str) -> bool:
  return node[name] is None or not isinstance(node[name], (str, ConfigDict))


def _place(config: Any, path: str) -> tuple[ConfigDict, str]:
  """The group that a field is in, and its name there."""
  *groups, name = path.split('.')
  return functools.reduce(getattr, groups, config), name


def _wrong_value(config: Any, argv: list[str], error: flags.Error) -> str:
  for arg in argv:
    name, _, value = arg.partition('=')
    if name.startswith('--config.') and str(error).startswith(f'flag {name}={value}:'):
      field = name.removeprefix('--')
      parent, last = _place(config, field.removeprefix('config.'))
      node = parent[last]
      if isinstance(node, ConfigDict):
        return _is_group(field, node)
      if node is None:
        return f'{field} takes {_a(parent.get_type(last))}, or auto, not {value!r}.'
      return f'{field} takes {_a(type(node))} such as {node!r}, not {value!r}.'
  return str(error).splitlines()[0]


def _a(kind: type) -> str:
  names = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a word', tuple: 'a tuple'}
  return names.get(kind, kind.__name__)
