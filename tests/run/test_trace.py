"""Traces of steps, read as Perfetto reads them."""
import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from conic_jax.pretraining import training
from conic_jax.run.trace import Trace


def events(folder):
  """The events of the one trace in a TensorBoard folder; TensorBoard's own file of it is there too."""
  file, = folder.glob('plugins/profile/*/*.trace.json.gz')
  assert list(file.parent.glob('*.xplane.pb'))
  return json.loads(gzip.decompress(file.read_bytes()))['traceEvents']


def steps_of(told):
  """The numbers of the steps in a trace."""
  return sorted({int(event['args']['step_num']) for event in told if event.get('name') == 'train'})


@jax.jit
def plain_step(state, inputs):
  return state + jnp.sin(inputs['x']).sum(), {}, {}


def walk(trace, first, last):
  """Takes steps of nothing under a trace."""
  step, state = trace.of(plain_step), jnp.zeros(())
  for _ in range(first, last):
    state, *_ = step(state, {'x': jnp.ones(8)})
  trace.close()


@pytest.mark.slow
def test_a_run_has_a_trace_of_the_steps_that_were_asked_for(tiny_config, tmp_path, capsys):
  tiny_config.profile, tiny_config.max_steps = (2, 4), 5
  tiny_config.eval.update(knn=False, linear=False)
  training.pretrain(tiny_config)
  told = events(tmp_path / 'run/tensorboard')
  assert steps_of(told) == [3, 4]
  modules = [event['args']['hlo_module'] for event in told if 'hlo_module' in event.get('args', {})]
  assert 'jit_step' in modules
  assert 'The trace up to step 4 is in' in capsys.readouterr().out


@pytest.mark.parametrize(('done', 'last', 'recorded'), [(3, 9, [4, 5]), (0, 4, [3, 4])])
def test_a_run_that_goes_on_or_ends_in_between_has_the_part_that_it_saw(tmp_path, done, last, recorded):
  walk(Trace(tmp_path, 2, 5, done, print), done, last)
  assert steps_of(events(tmp_path)) == recorded


def test_steps_that_are_past_leave_no_trace(tmp_path):
  walk(Trace(tmp_path, 2, 5, 5, pytest.fail), 5, 8)
  assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_made_does_not_stop_the_training(tmp_path):
  (tmp_path / 'file').write_text('')
  said = []
  walk(Trace(tmp_path / 'file', 0, 2, 0, said.append), 0, 4)
  assert len(said) == 1
  assert 'the training goes on' in said[0]
