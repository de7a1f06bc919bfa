"""The command `conic`: what its arguments mean, from anywhere, and from a wheel."""
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from support import flags_of, write_images

from conic_jax import config_files, console
from conic_jax.command_line import load
from conic_jax.errors import Help, UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def images(tmp_path, monkeypatch):
  """A folder named 'my images' in an empty working directory."""
  (tmp_path / 'my images').mkdir()
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'my images'


@pytest.mark.parametrize(('given', 'module', 'expected'), [
  ('pretrain FOLDER', 'main',
   ['--config=conic:folder', '--config.data.dir=FOLDER', '--config.run=runs/my images']),
  ('pretrain FOLDER --method=simclr --epochs 100 --size 96 --out runs/x --alpha=1.0', 'main',
   ['--config=simclr:folder', '--config.data.dir=FOLDER', '--config.epochs=100', '--config.views.size=96',
    '--config.run=runs/x', '--config.alpha=1.0']),
  ('pretrain --batch=64 FOLDER --config.seed=3 --encoder resnet50 --lr 0.1', 'main',
   ['--config=conic:folder', '--config.data.dir=FOLDER', '--config.batch_size=64', '--config.seed=3',
    '--config.encoder.name=resnet50', '--config.optimizer.learning_rate=0.1', '--config.run=runs/my images']),
  ('pretrain photos --weights=moco.pth', 'main',
   ['--config=conic:photos', '--config.encoder.weights=moco.pth']),
  ('pretrain photos --epochs=1', 'main', ['--config=conic:photos', '--config.epochs=1']),
  ('pretrain --preset=imagenet --data.dir gs://b/tfds --distributed', 'main',
   ['--config=conic:imagenet', '--config.data.dir=gs://b/tfds', '--distributed']),
  ('pretrain gs://b/images', 'main', ['--config=conic:folder', '--config.data.dir=gs://b/images']),
  ('pretrain gs://b/train-{000..099}.tar --epochs=1', 'main',
   ['--config=conic:folder', '--config.data.dir=gs://b/train-{000..099}.tar', '--config.data.name=wds',
    '--config.epochs=1']),
  ('pretrain data/*.parquet --data.label=none', 'main',
   ['--config=conic:folder', '--config.data.dir=data/*.parquet', '--config.data.name=parquet',
    '--config.data.label=none']),
  ('pretrain FOLDER --data.name=wds', 'main',
   ['--config=conic:folder', '--config.data.dir=FOLDER', '--config.data.name=wds',
    '--config.run=runs/my images']),
  ('pretrain --config=mine.py --num_processes 2', 'main', ['--config=mine.py', '--num_processes=2']),
  ('evaluate knn runs/x', 'main', ['--config=knn', '--config.encoder=runs/x']),
  ('evaluate linear random FOLDER --out=there --linear.epochs 5', 'main',
   ['--config=linear:folder', '--config.data.dir=FOLDER', '--config.encoder=random', '--config.run=there',
    '--config.linear.epochs=5']),
  ('evaluate semi runs/x FOLDER', 'main',
   ['--config=semi:folder_1pct', '--config.data.dir=FOLDER', '--config.encoder=runs/x']),
  ('evaluate knn runs/x photos', 'main', ['--config=knn:photos', '--config.encoder=runs/x']),
  ('preview FOLDER --out=v.png --images 4', 'preview',
   ['--config=conic:folder', '--config.data.dir=FOLDER', '--out=v.png', '--images=4']),
  ('plan --topology=v5e:8x8 --method one_million --n 1000 --largest-n', 'plan',
   ['--config=one_million:imagenet', '--topology=v5e:8x8', '--config.num_instances=1000', '--largest-n']),
  ('embed runs/x FOLDER -k 5', 'embed', ['runs/x', 'FOLDER', '-k', '5']),
  ('export runs/x --to=flax', 'export.__main__', ['runs/x', '--to=flax'])])
def test_arguments_are_translated(images, given, module, expected):
  words = [str(images) if word == 'FOLDER' else word for word in given.split()]
  assert console.translate(words) == (
    f'conic_jax.{module}', [flag.replace('FOLDER', str(images)) for flag in expected])


def test_a_file_of_images_names_its_run(images):
  (images.parent / 'paths.csv').write_text('a.jpg,1\n')
  assert console.translate(['pretrain', 'paths.csv'])[1] == [
    '--config=conic:folder', '--config.data.dir=paths.csv', '--config.data.name=list',
    '--config.run=runs/paths']


@pytest.mark.parametrize(('given', 'message'), [
  ('pretrian photos', "no command 'pretrian'; did you mean pretrain?"),
  ('pretrain', 'Which images?'),
  ('pretrain nowhere', "There is no folder 'nowhere'. There is no preset 'nowhere'"),
  ('pretrain . photos', "'photos' is one folder too many"),
  ('pretrain . --config=a.py --method=simclr', 'leave out --method'),
  ('pretrain photos --method=nope', "There is no config file 'nope'; available: align_uniform, byol"),
  ('evaluate', 'A protocol is missing; available: knn'),
  ('evaluate nnk runs/x', "There is no protocol 'nnk'"),
  ('evaluate knn', 'Which encoder?')])
def test_mistakes_are_told(images, given, message):
  with pytest.raises(UserError) as error:
    console.translate(given.split())
  assert message in str(error.value)


@pytest.mark.parametrize('given', [
  '', '--help', 'pretrain --help', 'pretrain -h', 'evaluate --help', 'evaluate knn --help',
  'preview --help --method inscon', 'plan --help'])
def test_help_shows_what_there_is(images, given):
  with pytest.raises(Help) as text:
    console.translate(given.split())
  assert str(text.value).startswith('usage: conic')
  if 'pretrain' in given:
    assert '--alpha=2.5 ' in str(text.value)


def test_every_command_has_its_module():
  for command in console.COMMANDS.values():
    assert (ROOT / f'{command.module.replace(".", "/")}.py').is_file()
    assert bool(command.usage) == bool(command.translate)


def test_configs_are_found_by_name_from_anywhere(images):
  for name in ('conic:folder', 'conic.py:folder', 'configs/conic.py:folder'):
    assert load(name).method == 'conic'
  assert config_files.available()[:2] == ['align_uniform', 'byol']
  (images.parent / 'conic.py').write_text('from configs import simclr\n\n\ndef get_config(preset):\n'
                                          '  return simclr.get_config(preset)\n')
  assert load('conic.py:folder').method == 'simclr'  # A file that is there comes first.
  assert load('conic:folder').method == 'conic'


def test_configs_of_ones_own_import_each_other_and_the_librarys(images):
  own = images.parent / 'configs'
  own.mkdir()
  (own / 'my_settings.py').write_text('EPOCHS = 7\n')
  (own / 'mine.py').write_text(
    'from configs import conic, my_settings\n\n\ndef get_config(preset="folder"):\n'
    '  config = conic.get_config(preset)\n  config.epochs = my_settings.EPOCHS\n  return config\n')
  assert load(str(own / 'mine.py')).epochs == 7
  assert config_files.available() == ['configs/mine.py']


def test_the_wheel_has_every_package():
  settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']
  packages = {'.'.join(path.parent.relative_to(ROOT).parts)
              for path in (ROOT / 'conic_jax').rglob('__init__.py')}
  assert {*settings['packages']} == packages | {'conic_jax.configs'}


@pytest.mark.slow
def test_a_wheel_trains_evaluates_exports_and_explores_in_an_empty_folder(tiny_config, tmp_path):
  pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  source = tmp_path / 'source'
  source.mkdir()
  for name in ('conic_jax', 'configs', 'pyproject.toml', 'README.md', 'LICENSE'):
    (source / name).symlink_to(ROOT / name)
  subprocess.run([*pip, 'wheel', str(source), '--no-deps', '--no-build-isolation', '-w', str(tmp_path)],
                 check=True)
  environment = tmp_path / 'environment'
  venv.create(environment)
  python = environment / 'bin' / 'python'
  [wheel] = tmp_path.glob('*.whl')
  subprocess.run([*pip, '--python', str(python), 'install', '--no-deps', '--no-index', str(wheel)],
                 check=True)
  # What it depends on is taken from here; the checkout is not.
  [packages] = environment.glob('lib/*/site-packages')
  (packages / 'dependencies.pth').write_text(
    ''.join(f'{path}\n' for path in sys.path if path.endswith('site-packages')))
  folder = tmp_path / 'empty'
  folder.mkdir()
  write_images(folder / 'images')

  def run(*command):
    done = subprocess.run([str(part) for part in command], cwd=folder, text=True, capture_output=True,
                          env={**os.environ, 'PYTHONPATH': ''}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

  conic = environment / 'bin' / 'conic'
  assert 'pretrain' in run(conic, '--help')
  tiny_config.eval.knn = tiny_config.eval.linear = False  # What follows measures both.
  given = [flag.replace('--config.', '--') for flag in flags_of(tiny_config)
           if not flag.startswith(('--config=', '--config.data.dir', '--config.run', '--config.method'))]
  assert 'step 6/6' in run(conic, 'pretrain', 'images', '--preset=imagenet100', *given)
  assert 'Written to runs/images/knn.json' in run(conic, 'evaluate', 'knn', 'runs/images')
  assert run(conic, 'export', 'runs/images', '--to=flax', '--out=encoder.safetensors')
  assert (folder / 'encoder.safetensors').stat().st_size > 1000
  assert run(conic, 'explore') == 'Open runs/images/explore/index.html in a browser.\n'
  assert (folder / 'runs/images/explore/index.html').stat().st_size > 10_000
  run(python, '-m', 'conic_jax.main', '--config=configs/linear.py', '--config.encoder=runs/images')
  where = run(python, '-c', 'import conic_jax; print(conic_jax.__file__)')
  assert where.startswith(str(environment))
