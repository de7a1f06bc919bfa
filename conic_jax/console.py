"""The command `conic`: every command of the library, short for what is set most often.

  conic pretrain /my/images
  conic pretrain /my/images --method=simclr --epochs 100 --size 96 --out runs/mine
  conic evaluate knn runs/images
  conic embed runs/images /my/images --out=features.parquet

It translates its arguments to those of `python -m conic_jax.main` and its like, where every field of the
config is a flag too: --alpha=1.0 or --views.size=96.
"""
import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

# Before jaxlib is loaded: what its services log means nothing to the user.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

from conic_jax import command_line, config_files, fields
from conic_jax.ending import end_while_starting
from conic_jax.errors import Help, UserError
from conic_jax.home import expand_argument

PROTOCOLS = ('knn', 'linear', 'semi', 'finetune', 'svm', 'segment')
_SHORT = {**fields.SHORT, 'out': 'run'}
_OF_CLUSTER = ('distributed', 'coordinator', 'num_processes', 'process_id', 'lost_after', 'hung_after',
               'start_within')
_SWITCHES = ('help', 'distributed', 'largest-n')


@dataclasses.dataclass(frozen=True)
class Arguments:
  """The arguments of a command that takes a config.

  Attributes:
    words: those that are no flags.
    own: values of --method, --preset and --config, as far as given.
    passed: flags of the command and of its config, as its module takes them.
    wants_help: whether --help is among them.
  """
  words: list[str]
  own: dict[str, str]
  passed: list[str]
  wants_help: bool

  def has(self, field: str) -> bool:
    """Whether a field of the config is given."""
    return any(flag.partition('=')[0] == f'--config.{field}' for flag in self.passed)


def read(given: Sequence[str], flags: Sequence[str] = ()) -> Arguments:
  """Sorts arguments; those that are no flags of the command are fields of the config.

  Args:
    given: the arguments.
    flags: the command's own flags, which take precedence over short names of fields.
  """
  words, own, passed, wants_help = [], {}, [], False
  expanded = [expand_argument(argument) for argument in given]
  for argument in command_line.joined(expanded, lambda flag: flag.removeprefix('--') not in _SWITCHES):
    name, equals, value = argument.removeprefix('--').partition('=')
    if argument in ('-h', '--help'):
      wants_help = True
    elif not argument.startswith('--'):
      words.append(argument)
    elif name in ('method', 'preset', 'config'):
      own[name] = value
    elif name in flags or name.startswith('config.'):
      passed.append(argument)
    else:
      passed.append(f'--config.{_SHORT.get(name, name)}{equals}{value}')
  return Arguments(words, own, passed, wants_help)


# ---- What each command makes of its arguments ----------------------------------------------------


def pretrain(given: Sequence[str]) -> list[str]:
  """Arguments of `conic_jax.main` for a pretraining; the run is named as the folder of images is."""
  arguments = read(given, _OF_CLUSTER)
  flags = _pretraining('pretrain', arguments)
  run = config_files.run_of(arguments.words[0]) if arguments.words else None
  return [*flags, f'--config.run={run}'] if run and not arguments.has('run') else flags


def preview(given: Sequence[str]) -> list[str]:
  """Arguments of `conic_jax.preview`."""
  return _pretraining('preview', read(given, ('out', 'images')))


def plan(given: Sequence[str]) -> list[str]:
  """Arguments of `conic_jax.plan`, by default for the paper's own setting."""
  arguments = read(given, ('topology', 'json', 'largest-n'))
  if not (arguments.words or arguments.own.keys() & {'preset', 'config'}):
    arguments.own['preset'] = 'imagenet'
  return _pretraining('plan', arguments)


def evaluate(given: Sequence[str]) -> list[str]:
  """Arguments of `conic_jax.main` for the evaluation of an encoder."""
  arguments = read(given, _OF_CLUSTER)
  protocol, encoder, *images = [*arguments.words, '', ''][:max(2, len(arguments.words))]
  if arguments.wants_help:
    raise Help(_help('evaluate', protocol if protocol in PROTOCOLS else ''))
  if protocol not in PROTOCOLS:
    problem = f"There is no protocol '{protocol}'" if protocol else 'A protocol is missing'
    raise UserError(f'{problem}; available: {", ".join(PROTOCOLS)}. Usage: {COMMANDS["evaluate"].usage}.')
  if not encoder:
    raise UserError('Which encoder? Give a run, a file of weights, or random: '
                    f'{COMMANDS["evaluate"].usage}.')
  config, folder = _images(images, protocol, arguments.own.get('preset'))
  return [f'--config={config}', *folder, f'--config.encoder={encoder}', *arguments.passed]


def _pretraining(name: str, arguments: Arguments) -> list[str]:
  """The config of a pretraining, its images and the flags that are passed on."""
  own = arguments.own
  if 'config' in own and len(own) > 1:
    raise UserError('--config is a file with all settings: leave out --method and --preset.')
  method = own.get('config', own.get('method', 'conic'))
  if arguments.wants_help:
    raise Help(_help(name, method if ':' in method else f'{method}:{own.get("preset", "folder")}'))
  if not (arguments.words or own.keys() & {'preset', 'config'}):
    raise UserError('Which images? Give a folder, or a preset such as photos, which needs no download: '
                    f'{COMMANDS[name].usage}.')
  config, folder = _images(arguments.words, method, own.get('preset'))
  return [f'--config={config}', *folder, *arguments.passed]


def _images(words: Sequence[str], config: str, preset: str | None) -> tuple[str, list[str]]:
  """NAME:PRESET and the flag of the folder, for a word that names a folder or a preset."""
  if len(words) > 1:
    raise UserError(f"'{words[1]}' is one folder too many: give one.")
  if not words:
    return (f'{config}:{preset}' if preset else config), []
  path, given = config_files.with_images(config, words[0], preset)
  if not given:
    try:
      command_line.load(path)
    except UserError as error:
      raise UserError(f"There is no folder '{words[0]}'. {error}") from error
  return path, [f'--config.{field}={value}' for field, value in given.items()]


# ---- The commands -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of `conic`.

  Attributes:
    module: its module.
    about: what it does, a sentence.
    usage: how it is given.
    translate: from its arguments to those of the module, which it must then check; None if they are the same.
  """
  module: str
  about: str
  usage: str = ''
  translate: Callable[[Sequence[str]], list[str]] | None = None


COMMANDS = {
  'pretrain': Command(
    'conic_jax.main', 'Learn an encoder from a folder of images, or from those of a preset such as photos.',
    'conic pretrain FOLDER_OR_PRESET [--method=conic] [--epochs=100] [--minutes=30] [--size=96] '
    '[--batch=256] [--encoder=resnet18] [--weights=FILE] [--lr=0.06] [--seed=0] [--out=runs/x] '
    '[--FIELD=VALUE …]', pretrain),
  'evaluate': Command(
    'conic_jax.main', f'Measure the encoder of a run, a file or a random one: {", ".join(PROTOCOLS)}.',
    'conic evaluate PROTOCOL ENCODER [FOLDER_OR_PRESET] [--out=FOLDER] [--FIELD=VALUE …]', evaluate),
  'embed': Command('conic_jax.embed', 'Write the features of a folder, or find the images nearest to one.'),
  'export': Command('conic_jax.export.__main__',
                    'Write an encoder for torchvision, timm, Transformers, ONNX, Detectron2 or Flax.'),
  'explore': Command('conic_jax.explore.__main__',
                     'Lay out all images on a page, by what an encoder thinks of them.'),
  'report': Command('conic_jax.report.__main__', 'Write the page of a run.'),
  'activations': Command('conic_jax.activations', 'Draw where encoders look.'),
  'preview': Command(
    'conic_jax.preview', 'Draw the views of some images, as a method sees them.',
    'conic preview FOLDER_OR_PRESET [--method=conic] [--out=views.png] [--images=8] [--FIELD=VALUE …]',
    preview),
  'plan': Command(
    'conic_jax.plan', 'Say what a step takes on hardware that need not be here, and whether it fits.',
    'conic plan [PRESET] --topology=64xV100-32GB [--method=conic] [--n=1000000] [--largest-n] [--json=FILE] '
    '[--FIELD=VALUE …]', plan),
  'completion': Command('conic_jax.completion', 'Print how bash, zsh or fish completes this command.')}


def _help(name: str, config: str) -> str:
  """Usage of a command, what it does, and every field of the config if one is named."""
  command = COMMANDS[name]
  text = f'usage: {command.usage}\n\n{command.about}'
  if not config:
    return text
  described = fields.describe(command_line.load(config)).replace('--config.', '--')
  return f'{text}\n\nFields of {config}:\n{described}'


def overview() -> str:
  """What `conic --help` prints."""
  return '\n'.join(['usage: conic COMMAND …; conic COMMAND --help says more.', '',
                    *(f'  {name:12} {command.about}' for name, command in COMMANDS.items())])


def translate(given: Sequence[str]) -> tuple[str, list[str]]:
  """The module of a command, and the arguments that it takes.

  Raises:
    Help: if --help is given, or nothing.
    UserError: if there is no such command, or it lacks an argument.
  """
  if not given or given[0] in ('--help', '-h', 'help'):
    raise Help(overview())
  name, *rest = given
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, 1)
    raise UserError(f"There is no command '{name}'{f'; did you mean {near[0]}?' if near else '.'} "
                    f'Available: {", ".join(COMMANDS)}.')
  chosen = COMMANDS[name]
  return chosen.module, chosen.translate(rest) if chosen.translate else rest


def command() -> None:
  """Runs the command and sets its exit code."""
  end_while_starting()
  chosen: list[tuple[str, list[str]]] = []
  command_line.guarded(lambda: chosen.append(translate(sys.argv[1:])))
  for module, arguments in chosen:
    # Modules of the user's own are found from the folder where the command is started, as with python -m.
    sys.path.append(os.getcwd())
    sys.argv = [f'conic {sys.argv[1]}', *arguments]
    importlib.import_module(module).command()


if __name__ == '__main__':
  command()
