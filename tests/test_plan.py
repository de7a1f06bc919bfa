"""The plan: the training's own step on local devices, the search, and the answers to mistakes."""
import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import config_of

from conic_jax import methods, plan
from conic_jax.command_line import load
from conic_jax.data import pipeline, sources
from conic_jax.data.sampler import Sampler
from conic_jax.errors import UserError
from conic_jax.hardware import mesh as meshes
from conic_jax.hardware import topologies
from conic_jax.hardware.program_cost import Choice, Collective, Cost, Kernel
from conic_jax.pretraining import train_step

KEYS = {'fits', 'peak_bytes', 'limit_bytes', 'arguments_bytes', 'temp_bytes', 'flops', 'bytes_accessed',
        'collectives', 'num_instances', 'bound', 'least'}


def tiny(name):
  """A method's config with a network of one block."""
  config = load(config_of(name))
  config.batch_size, config.views.size = 16, 16
  config.encoder.name, config.encoder.stem = 'resnet18', 'cifar'
  config.encoder.blocks, config.encoder.width = (1,), 0.125
  config.head.hidden, config.head.features = 16, 8
  if 'batch_norm' in config:
    config.batch_norm.groups = 2
  return config


def made_on(config, count, num_instances=4096):
  where = topologies.parse(f'cpu:{count}')
  mesh = meshes.make_mesh(config.mesh, topologies.devices(where))
  return plan.plan(config, where, mesh, num_instances)


# ---- The compiled step --------------------------------------------------------------------------


@pytest.fixture(scope='module')
def plans():
  """ConIC's step with a tiny network, planned for one device and for eight."""
  config = tiny('conic')
  return config, {count: made_on(config, count) for count in (1, 8)}


@pytest.mark.slow
def test_arguments_are_the_state_and_the_batch_that_a_device_holds(plans):
  config, made = plans
  rows = 2 * 4096 * 8 * 4  # Weights and momentum.
  images = 16 * 2 * 16 * 16 * 3
  split = (rows + images) * 7 / 8
  assert made[1].arguments_bytes - made[8].arguments_bytes == pytest.approx(split, rel=0.01)
  mesh = meshes.make_mesh(devices=jax.devices()[:1])
  method = methods.make(config, 4096, mesh, jnp.dtype('float32'))
  state = jax.eval_shape(lambda: train_step.init_state(
    method, plan.optim.make_optimizer(config.optimizer), 0, jnp.dtype('float32')))
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.replace(rng=None)))
  assert made[1].arguments_bytes == pytest.approx(whole + images, rel=0.02)


def test_the_peak_is_within_the_limit_and_counts_donated_memory_once(plans):
  for made in plans[1].values():
    assert made.fits
    assert made.arguments_bytes + made.temp_bytes <= made.peak_bytes <= made.limit_bytes
    assert made.peak_bytes < made.arguments_bytes + made.temp_bytes + 4096


def test_devices_share_the_work(plans):
  made = plans[1]
  assert made[8].flops == pytest.approx(made[1].flops / 8, rel=0.02)
  assert made[1].unknown_loops == made[8].unknown_loops == 0


@pytest.mark.slow
def test_parts_of_a_batch_save_memory_and_cost_one_more_forward_pass(plans):
  _, made = plans
  in_parts = tiny('conic')
  in_parts.accumulate = 4
  of_parts = made_on(in_parts, 1)
  assert of_parts.arguments_bytes == made[1].arguments_bytes
  assert of_parts.temp_bytes < made[1].temp_bytes / 2
  assert 1.1 < of_parts.flops / made[1].flops < 4 / 3
  in_parts.accumulate = 3
  with pytest.raises(UserError, match=r'config\.accumulate 3'):
    made_on(in_parts, 1)


@pytest.mark.slow
def test_the_chunks_of_the_classifier_count_as_often_as_they_run(plans):
  """Four products of all features with all rows: two for the scores, two for the update."""
  config, made = plans
  many = made_on(config, 1, 32768)
  assert many.flops - made[1].flops == 4 * 2 * 32 * 8 * (32768 - 4096)


def test_no_collective_is_larger_than_the_features_or_the_parameters(plans):
  config, made = plans
  mesh = meshes.make_mesh(devices=jax.devices()[:8])
  method = methods.make(config, 4096, mesh, jnp.dtype('float32'))
  params = jax.eval_shape(lambda: train_step.init_state(
    method, plan.optim.make_optimizer(config.optimizer), 0, jnp.dtype('float32'))).params
  bound = max(4 * 32 * 8, 4 * sum(leaf.size for leaf in jax.tree.leaves(params)))
  assert made[8].collectives
  for each in made[8].collectives:
    assert set(each) == {'kind', 'bytes', 'count'}
    assert 0 < each['bytes'] <= bound


def test_the_batch_is_the_one_that_training_reads(tiny_config, mesh8):
  source = sources.open_source(tiny_config.data, 'train')
  method = methods.make(tiny_config, source.num_images, mesh8, jnp.dtype('float32'))
  batch = next(pipeline.train_batches(source, method.views, Sampler(source.num_images, 16, seed=0),
                                      start_step=0, rows=meshes.process_rows(mesh8, 16)))
  batch.pop('label')
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), meshes.to_global(batch, mesh8))
  assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), plan.batch_shapes(method, 16))


@pytest.mark.slow
@pytest.mark.parametrize('name', methods.available())
def test_every_methods_step_lowers_from_shapes_at_many_rows(name, mesh8):
  lowered = plan.lower_step(tiny(name), mesh8, 100_000_000, jnp.dtype('float32'), 'cpu')
  shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  assert shapes(lowered.args_info[0][0]) == shapes(lowered.out_info[0])


@pytest.mark.parametrize(('name', 'expected'), [
  ('conic', 2 * 4 * 8 / 8), ('one_million', (2 * 4 * 8 + 4 * 100) / 8), ('data_parallel', 2 * 4 * 8),
  ('conic_s', 0)])
def test_a_row_takes_its_share_of_a_devices_state(name, expected, mesh8):
  assert plan.bytes_a_row(tiny(name), mesh8) == pytest.approx(expected, rel=1e-3)


# ---- Figures ------------------------------------------------------------------------------------


def test_the_estimate_is_what_a_hand_finds():
  kernels = (Kernel(125e9, 0, 0, 1), Kernel(0, 15.7e9, 898e6, 3), Kernel(0, 0, 898e6, 2))
  cost = Cost(kernels, (Collective('all-reduce', 1000, 2), Collective('all-gather', 500, 1)), 0)
  found = plan.roofline(cost, topologies.parse('8xV100-32GB'))
  assert found['compute_seconds'] == pytest.approx(4e-3)
  assert found['memory_seconds'] == pytest.approx(5e-3)
  assert found['kernel_seconds'] == pytest.approx(1e-3 + 3e-3 + 2e-3)
  assert found['memory_bound_seconds'] == pytest.approx(2e-3)
  assert found['communication_seconds'] == pytest.approx(4500 * 7 / 8 / 150e9)
  between_hosts = plan.roofline(cost, topologies.parse('64xV100-32GB'))['communication_seconds']
  assert between_hosts == pytest.approx(4500 * (63 / 64 / 150e9 + 7 / 8 / 12.5e9))
  assert plan.roofline(cost, topologies.parse('cpu:8')) == {}


@pytest.mark.parametrize(('bound', 'kernels', 'collectives'), [
  ('products', (Kernel(125e9, 0, 800e6, 3), Kernel(0, 0, 898e6, 2)), ()),
  ('memory', (Kernel(125e9, 0, 0, 3), Kernel(100e9, 0, 898e6, 4)), ()),
  ('collectives', (Kernel(125e9, 0, 0, 3), Kernel(0, 0, 898e6, 2)),
   (Collective('all-gather', round(150e6 * 8 / 7), 4),))])
def test_what_takes_the_largest_part_of_the_time_bounds_the_step(bound, kernels, collectives):
  """Kernels that wait for products count as those do, whatever they move, and the other way round."""
  assert plan.roofline(Cost(kernels, collectives, 0), topologies.parse('8xV100-32GB'))['bound'] == bound


@pytest.mark.parametrize(('message', 'bytes_'), [
  ('RESOURCE_EXHAUSTED: Ran out of memory. Used 33.50G of 15.75G hbm. Exceeded', round(33.5 * 2**30)),
  ('RESOURCE_EXHAUSTED: Used 512.0M of 15.75G hbm', 512 * 2**20),
  ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (28.50G) '
   'exceeds available HBM (15.75G).', round(28.5 * 2**30) + 1000),
  ('RESOURCE_EXHAUSTED: no more', None)])
def test_a_refusal_tells_what_was_needed(message, bytes_):
  assert plan.refused_bytes(message, 1000) == bytes_


def test_the_report_says_what_fits_and_what_does_not(plans):
  made = plans[1][8]
  text = plan.report(made)
  assert re.search(r'conic on cpu:8: 4,096 instances, batch 16, float32', text)
  assert ': fits' in text
  assert re.search(r'all-reduce +\d+ × [\d,]+', text)
  assert 'DOES NOT FIT' in plan.report(dataclasses.replace(made, fits=False))
  assert ' to ' not in text
  refused = dataclasses.replace(made, fits=False, peak_bytes=None, flops=None)
  assert 'the compiler refused' in plan.report(refused)
  full = dataclasses.replace(made, topology='8xV100-32GB', peak_bytes=28 * 2**30)
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.92' in plan.report(full)
  assert 'MEM_FRACTION' not in plan.report(dataclasses.replace(full, peak_bytes=2**30))


def test_the_report_gives_the_least_and_the_most_and_what_bounds_them(plans):
  where = topologies.parse('8xV100-32GB')
  least = Cost((Kernel(250e9, 0, 0, 1), Kernel(0, 0, 898e6, 1)), (), 0)
  most = Cost((Kernel(250e9, 0, 0, 1), Kernel(0, 0, 898e6, 7)), (), 0)
  figures = lambda cost: {'flops': cost.flops, 'bytes_accessed': cost.bytes_accessed,
                          **plan.roofline(cost, where)}
  made = dataclasses.replace(plans[1][8], topology=where.name, least=figures(least), **figures(most))
  text = plan.report(made)
  assert 'a step on a device: 0.250 TFLOP, 0.90 to 6.29 GB moved\n  with the cheapest and' in text
  assert 'at least 3.0 to 9.0 ms for its kernels, products alone 2.0 ms, memory alone 1.0 to 7.0 ms;' in text
  assert ('bound by products or memory: kernels that wait for products take 2.0 ms, kernels that wait for '
          'memory 1.0 to 7.0 ms, collectives 0.0 ms') in text
  assert 'bound by memory:' in plan.report(dataclasses.replace(made, least=figures(most)))


def test_a_step_without_conditionals_costs_the_same_at_least(plans):
  for made in plans[1].values():
    assert made.least == {'flops': made.flops, 'bytes_accessed': made.bytes_accessed}


def test_a_conditionals_branches_are_those_of_least_and_of_most_time(monkeypatch):
  """One branch moves more, the other computes longer."""
  moves, computes = (Cost((kernel,), (), 0) for kernel in (Kernel(0, 0, 898e6, 1), Kernel(250e9, 0, 1e6, 1)))
  choice = Choice((moves, computes), 5)
  monkeypatch.setattr(plan.program_cost, 'analyse', lambda text: Cost((), (), 0, (choice,)))
  where = dataclasses.replace(topologies.parse('cpu:8'), hardware=topologies.GPUS['V100-32GB'])
  config = tiny('conic')
  mesh = meshes.make_mesh(config.mesh, topologies.devices(topologies.parse('cpu:8')))
  made = plan.plan(config, where, mesh, 4096)
  assert (made.bytes_accessed, made.flops, made.bound) == (5 * 1e6, 5 * 250e9, 'products')
  assert (made.least['bytes_accessed'], made.least['flops'], made.least['bound']) == (5 * 898e6, 0, 'memory')
  assert made.kernel_seconds == pytest.approx(5 * 2e-3)
  assert made.least['kernel_seconds'] == pytest.approx(5 * 1e-3)


# ---- The most classes ---------------------------------------------------------------------------


def measured(peak, limit=10**12):
  """Plans whose peak is a function of N, None for a refusal that tells no size."""
  def measure(number):
    found = peak(number)
    return plan.Plan('cpu:8', 'conic', 'float32', 16, number, 8, found is not None and found <= limit, found,
                     limit, 0.0)
  return measure


def check_search(plans):
  """The answer, after a look that it fits and the next number of three digits does not."""
  fits = {each.num_instances: each.fits for each in plans}
  assert len(fits) == len(plans), 'a number was compiled twice'
  best = max(number for number, good in fits.items() if good)
  assert str(best)[3:].strip('0') == ''
  if best < 2_140_000_000:
    following = best + 10 ** max(len(str(best)) - 3, 0)
    assert fits[following] is False
  return best


@settings(deadline=None)
@given(per_row=st.integers(460, 10**8), fixed=st.integers(0, 9 * 10**11), start=st.integers(1, 2**31 - 1),
       share=st.floats(0.01, 1))
def test_the_search_ends_between_two_neighbours_one_fitting_one_not(per_row, fixed, start, share):
  plans = plan.largest(measured(lambda n: fixed + per_row * n), start, per_row * share)
  assert len(plans) <= 8
  exact = (10**12 - fixed) // per_row
  if exact < 1000:
    assert not any(each.fits for each in plans)
    assert min(each.num_instances for each in plans) == 1000
  else:
    unit = 10 ** (len(str(exact)) - 3)
    assert check_search(plans) == min(exact // unit * unit, 2_140_000_000)


@pytest.mark.parametrize('peak', [
  lambda n: 200 * n + (3 * 10**11 if n > 10**8 else 0),
  lambda n: int(3000 * n ** 0.9),
  lambda n: int(1e-3 * n ** 1.7),
  lambda n: 10**9 if n < 77_777_777 else 2 * 10**12,
  lambda n: 500 * n if n < 2.5e9 else None,
  lambda n: 10**6 * n if n < 999_999 else None,
])
def test_the_search_ends_where_memory_is_no_line(peak):
  plans = plan.largest(measured(peak), 1_000_000, 100)
  assert len(plans) <= 25
  check_search(plans)


def test_memory_that_does_not_grow_leads_to_the_last_id_there_is():
  plans = plan.largest(measured(lambda n: 10**9), 1_000_000, 0)
  assert [each.num_instances for each in plans] == [1_000_000, 2_140_000_000]


# ---- The command --------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch):
  """Runs the command on this process's devices."""
  monkeypatch.setattr(topologies, 'prepare', lambda where: None)

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['plan', *arguments])
    plan.command()
  return run


def test_the_command_prints_and_writes_the_plan(command, plans, tmp_path, capsys, monkeypatch):
  made = plans[1][8]
  monkeypatch.setattr(plan, 'plan', lambda config, where, mesh, number: dataclasses.replace(
    made, num_instances=number, topology=where.name, num_devices=mesh.size))
  file = tmp_path / 'plan.json'
  command('--config=configs/conic.py', '--topology=cpu:8', '--config.num_instances=5000', '--json', str(file))
  written = json.loads(file.read_text())
  assert set(written) >= KEYS
  assert 'largest_n' not in written
  assert (written['num_instances'], written['fits'], written['peak_bytes']) == (5000, True, made.peak_bytes)
  assert written['collectives'] == list(made.collectives)
  assert 'conic on cpu:8: 5,000 instances' in capsys.readouterr().out


def test_the_command_searches_for_the_most_classes(command, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(plan, 'plan', lambda config, where, mesh, number: measured(lambda n: 10**4 * n)(number))
  monkeypatch.setattr(plan, 'bytes_a_row', lambda config, mesh: 10**4)
  file = tmp_path / 'plan.json'
  command('--config=configs/conic.py', '--topology=cpu:8', '--largest-n', f'--json={file}')
  written = json.loads(file.read_text())
  assert set(written) >= KEYS | {'largest_n', 'search'}
  assert written['largest_n'] == written['num_instances'] == 100_000_000
  assert {each['num_instances']: each['fits'] for each in written['search']}[101_000_000] is False
  assert 'the most instances that fit: 100,000,000' in capsys.readouterr().out


def test_images_that_are_not_here_are_counted_as_published(command, capsys, monkeypatch, tmp_path):
  monkeypatch.setattr(plan, 'plan', lambda config, where, mesh, number: measured(lambda n: n)(number))
  command('--config=configs/conic.py', '--topology=cpu:8', f'--config.data.dir={tmp_path}')
  out = capsys.readouterr().out
  assert 'imagenet2012 are not here: a plan for its 1,281,167 training images' in out
  assert '--config.num_instances=N' in out


def test_images_that_are_here_are_counted(tiny_config, capsys):
  assert plan.num_instances(tiny_config) == 48
  tiny_config.num_instances = 7
  assert plan.num_instances(tiny_config) == 7


@pytest.mark.parametrize(('arguments', 'answer'), [
  (['--config=configs/conic.py'], r'Which hardware\? .*--topology=64xV100-32GB'),
  (['--topology=cpu:8'], r'Which config\?'),
  (['--config=configs/conic.py', '--topology=8xV100'], r"no topology '8xV100'; available: .*V100-32GB"),
  (['--config=configs/conic.py', '--topology=cpu:8', '--config.batch_size=100'],
   r'100 cannot be split over 8 devices: .* 96 and 104'),
  (['--config=configs/conic.py', '--topology=cpu:8', '--config.data.dir=/no',
    '--config.data.train=train[:9%]'], r'--config\.num_instances=N'),
  (['--config=configs/conic.py:folder', '--topology=cpu:8', '--config.data.dir=/no'],
   r'/no.*--config\.num_instances=N'),
  (['--config=configs/conic.py', '--topology=cpu:8', '--config.num_instances=-3'], r'num_instances is -3'),
  (['--config=configs/conic.py', '--topology=cpu:8', '--largest'], r'no flag --largest; .*--largest-n'),
  (['--config=configs/conic.py', '--topology=cpu:8', '--config.batchsize=8'], r'no config\.batchsize'),
  (['--config=configs/conic.py', '--topology=cpu:8', '--config.epochs=0'], r'config\.epochs is 0'),
  (['--config=configs/conic.py', '--topology=cpu:8', '--json=/no/such/plan.json'], r'no folder /no/such'),
  (['--config=configs/knn.py', '--topology=cpu:8'], r"config\.task is 'knn'"),
])
def test_a_mistake_is_answered_in_one_line(command, arguments, answer):
  with pytest.raises(SystemExit) as exit:
    command(*arguments)
  assert str(exit.value).startswith('conic_jax: ')
  assert len(str(exit.value).splitlines()) == 1
  assert re.search(answer, str(exit.value)), exit.value


def test_help_names_the_topologies(command, capsys):
  command('--help')
  assert '64xV100-32GB' in capsys.readouterr().out


def test_a_batch_that_the_axes_cannot_split_is_refused_before_anything_is_compiled(tiny_config):
  tiny_config.mesh = {'data': 3}
  with pytest.raises(UserError, match='does not cover the 8 devices'):
    made_on(tiny_config, 8)
