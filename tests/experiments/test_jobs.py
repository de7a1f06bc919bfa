"""The grids: every run of every experiment is a command that the project takes."""
import dataclasses

import pytest

from conic_jax import recipe
from conic_jax.command_line import load
from experiments import jobs, run, statistics
from experiments.scales import CONFIGS, SCALES
from experiments.tuning import needed_rates, tuned

EXPERIMENTS = jobs.load(jobs.all_names())
CHOSEN = {config: {'optimizer.learning_rate': 0.03} for config in CONFIGS}


def flags(job, preset, tmp_path):
  """The config file and the fields that a training is started with; what comes before it must load too."""
  *before, command = run.commands(job, preset, tmp_path / 'run', tmp_path / 'sets')[:len(job.before) + 1]
  for each in before:
    load(each[1].removeprefix('--config=')).update_from_flattened_dict(
      {flag.removeprefix('--config.').partition('=')[0]: None for flag in each[2:]})
  assert command[0] == 'conic_jax.main'
  given = dict(flag.removeprefix('--config.').split('=', 1) for flag in command[2:])
  return command[1].removeprefix('--config='), given


@pytest.mark.slow
@pytest.mark.parametrize('scale', SCALES.values(), ids=list(SCALES))
@pytest.mark.parametrize('experiment', EXPERIMENTS, ids=[each.name for each in EXPERIMENTS])
def test_every_run_is_one_that_the_project_takes(experiment, scale, tmp_path):
  grid = jobs.jobs(experiment, scale, CHOSEN)
  assert len(grid) == experiment.seeds * len(experiment.variants(scale))
  assert len({job.key for job in grid}) == len(grid)
  for job in grid:
    if job.seed or not job.config:
      continue
    file, given = flags(job, scale.preset, tmp_path)
    config = load(file)
    for field in given:
      node = config
      for name in field.split('.'):
        assert name in node, f'{experiment.name}, {job.variant}: {file} has no {field}'
        node = node[name]
    settings = {name: tuple(value) if isinstance(value, list) else value
                for name, value in job.settings.items()}
    config.update_from_flattened_dict({**settings, 'seed': job.seed})
    assert experiment.bare or not set(recipe.open_fields(config)) & {
      'optimizer.learning_rate', 'epochs', 'batch_size', 'views.size', 'temperature', 'queue.size',
      'head.hidden', 'classifier.lr_scale', 'classifier.window', 'alpha_pace', 'momentum.start'}


@pytest.mark.parametrize('experiment', EXPERIMENTS, ids=[each.name for each in EXPERIMENTS])
def test_questions_ask_for_runs_and_figures_that_are_there(experiment):
  names = set(experiment.variants(SCALES['cpu']))
  assert set(experiment.measures) <= set(statistics.MEASURES)
  for question in (*experiment.questions, *experiment.asides):
    asked = dataclasses.asdict(question)
    if not experiment.pools:
      for name in ('first', 'second', 'variant'):
        value = asked.get(name, ())
        assert {value} <= names if isinstance(value, str) else set(value) <= names
      assert {asked['measure'], asked.get('than') or asked['measure']} <= set(statistics.MEASURES)
    assert question.answer({}).verdict == statistics.OPEN


def test_runs_that_two_experiments_ask_for_are_one():
  keys = {experiment.name: {job.key for job in jobs.jobs(experiment, SCALES['cpu'], CHOSEN)}
          for experiment in EXPERIMENTS}
  assert keys['conic_compact'] <= keys['conic_alpha']
  for other in ('conic_batch', 'conic_sampling', 'conic_collapse', 'one_million_parts', 'co2',
                'inscon_heads'):
    assert keys['all_methods'] & keys[other], other


def test_runs_wait_for_their_rate(tmp_path):
  conic_alpha = next(each for each in EXPERIMENTS if each.name == 'conic_alpha')
  rates = next(each for each in EXPERIMENTS if each.name == 'rates')
  scale = SCALES['cpu']
  assert jobs.jobs(conic_alpha, scale, {}) == []
  found = {job.variant: job for job in jobs.jobs(rates, scale, {})}
  assert {job.variant for job in needed_rates(conic_alpha, scale, {})} == {
    'conic, 0.02', 'conic, 0.06', 'conic, 0.18'}
  for name, linear in (('conic, 0.02', 0.1), ('conic, 0.06', 0.2), ('simclr, 0.02', 0.3)):
    jobs.append(found[name], {'figures': {'knn_top1': 0.3, 'linear_top1': linear}}, tmp_path)
  assert tuned(scale, jobs.read('cpu', tmp_path)) == {}
  jobs.append(found['conic, 0.18'], {'figures': {}, 'diverged': 'The loss was nan at step 3'}, tmp_path)
  chosen = tuned(scale, jobs.read('cpu', tmp_path))
  assert chosen == {'conic': {'optimizer.learning_rate': 0.06, 'classifier.lr_scale': 11.0}}
  assert needed_rates(conic_alpha, scale, chosen) == []
  assert {job.settings['optimizer.learning_rate'] for job in jobs.jobs(conic_alpha, scale, chosen)} == {0.06}
  assert {job.settings['data.test'] for job in found.values()} == {'choose'}


def test_a_line_that_was_cut_short_is_done_again_and_spoils_no_other(tmp_path):
  grid = jobs.jobs(next(each for each in EXPERIMENTS if each.name == 'conic_compact'), SCALES['cpu'], CHOSEN)
  jobs.append(grid[0], {'figures': {'knn_top1': 0.1}}, tmp_path)
  jobs.append(grid[1], {'figures': {'knn_top1': 0.2}}, tmp_path)
  path = jobs.results_file('conic_compact', 'cpu', tmp_path)
  path.write_bytes(path.read_bytes()[:-20])
  assert set(jobs.read('cpu', tmp_path)) == {grid[0].key}
  jobs.append(grid[2], {'figures': {'knn_top1': 0.3}}, tmp_path)
  assert set(jobs.read('cpu', tmp_path)) == {grid[0].key, grid[2].key}
