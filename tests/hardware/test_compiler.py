"""What is set for JAX and XLA before they start."""
import os
import subprocess
import sys

import pytest
from support import flags_of, losses_by_step
from xla_flags import xla_flags

from conic_jax.hardware import compiler

PROGRAM = ('import conic_jax, os; conic_jax.load; import jax, jax.numpy as jnp; '
           'jax.jit(lambda x: jnp.linalg.qr(jnp.sort(x @ x.T)))(jnp.ones((64, 64))); '
           'print(jax.config.jax_compilation_cache_dir)')
SET = ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')


@pytest.fixture
def environment(monkeypatch, tmp_path):
  """An environment in which nothing is set, with a cache folder of its own."""
  for name in SET:
    monkeypatch.setenv(name, '')
    monkeypatch.delenv(name)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(compiler, '_set_jax', lambda name, value: monkeypatch.setenv(name.upper(), str(value)))
  return os.environ


@pytest.mark.slow
def test_compiled_programs_are_kept_for_the_next_process(environment, tmp_path):
  run = lambda: subprocess.run([sys.executable, '-c', PROGRAM], check=True, text=True, stdout=subprocess.PIPE,
                               env=environment | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
                                                  'XLA_FLAGS': xla_flags(1)}).stdout
  folder = run().strip()
  assert folder == str(compiler.compiled_folder())
  assert folder.startswith(str(tmp_path))
  kept = {path.name: path.stat().st_mtime_ns for path in compiler.compiled_folder().glob('*-cache')}
  assert kept
  run()
  assert {path.name: path.stat().st_mtime_ns for path in compiler.compiled_folder().glob('*-cache')} == kept


@pytest.mark.slow
def test_a_run_that_goes_on_compiles_its_step_no_second_time(environment, tiny_config):
  tiny_config.eval.update(knn=False, linear=False)
  kept = []
  for steps in (1, 2):
    tiny_config.max_steps = steps
    subprocess.run([sys.executable, '-m', 'conic_jax.main', *flags_of(tiny_config)], check=True,
                   stdout=subprocess.DEVNULL,
                   env=environment | {'PYTHONPATH': os.getcwd(), 'XLA_FLAGS': xla_flags(1)})
    kept.append({path.name: path.stat().st_mtime_ns
                 for path in compiler.compiled_folder().glob('jit_step-*-cache')})
  assert len(kept[0]) == 1
  assert kept[1] == kept[0]
  assert sorted(losses_by_step(tiny_config.run)) == [1, 2]


def test_what_the_user_has_set_stays(environment, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/elsewhere')
  compiler.prepare_compiler()
  assert os.environ['XLA_FLAGS'] == '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT'
  assert os.environ['JAX_COMPILATION_CACHE_DIR'] == '/elsewhere'


def test_flags_are_added_once_to_those_that_are_set(environment, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
  compiler.prepare_compiler()
  compiler.prepare_compiler()
  assert os.environ['XLA_FLAGS'] == (
    f'--xla_force_host_platform_device_count=8 {compiler.CONVOLUTIONS_BY_EIGEN}')


def test_without_a_folder_to_write_nothing_is_kept(environment, monkeypatch, tmp_path):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  compiler.prepare_compiler()
  assert 'JAX_COMPILATION_CACHE_DIR' not in os.environ


def test_the_oldest_programs_are_dropped(tmp_path):
  for index in range(4):
    path = tmp_path / f'{index}-cache'
    path.write_bytes(bytes(100))
    os.utime(path, (1000 - index, 1000 - index))
  compiler._drop_oldest(tmp_path, 250)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['0-cache', '1-cache']


@pytest.mark.parametrize(('platform', 'flags', 'options'), [
  ('cpu', '', {'xla_backend_optimization_level': 1}), ('gpu', '', {}), ('tpu', '', {}),
  ('cpu', '--xla_backend_optimization_level=0', {})])
def test_a_program_that_runs_once_is_compiled_quickly_on_a_cpu(platform, flags, options, environment,
                                                               monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', flags)
  assert compiler.options_of_one_run(platform) == options
