"""The grids: every run of every experiment is a command that the project takes."""
import pytest

from conic_jax import recipe
from conic_jax.command_line import load
from experiments import jobs, run, statistics
from experiments.scales import CONFIGS, SCALES
from experiments.tuning import tuned

EXPERIMENTS = jobs.load(jobs.all_names())
CHOSEN = {config: {'optimizer.learning_rate': 0.03} for config in CONFIGS}


def flags(job, preset, tmp_path):
  """The config file and the fields that a training is started with."""
  command = run.commands(job, preset, tmp_path / 'run', tmp_path / 'sets')[0]
  assert command[0] == 'conic_jax.main'
  given = dict(flag.removeprefix('--config.').split('=', 1) for flag in command[2:])
  return command[1].removeprefix('--config='), given


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
  for question in experiment.questions:
    if not experiment.pools:
      assert {question.first, question.second} <= names
      assert question.measure in statistics.MEASURES
    assert question.answer({}).verdict == statistics.OPEN


def test_runs_that_two_experiments_ask_for_are_one():
  keys = {experiment.name: {job.key for job in jobs.jobs(experiment, SCALES['cpu'], CHOSEN)}
          for experiment in EXPERIMENTS}
  assert keys['conic_compact'] <= keys['conic_alpha']
  for other in ('conic_batch', 'conic_sampling', 'one_million_parts', 'co2'):
    assert keys['all_methods'] & keys[other], other


def test_runs_wait_for_their_rate(tmp_path):
  conic_alpha = next(each for each in EXPERIMENTS if each.name == 'conic_alpha')
  rates = next(each for each in EXPERIMENTS if each.name == 'rates')
  scale = SCALES['cpu']
  assert jobs.jobs(conic_alpha, scale, {}) == []
  found = {job.variant: job for job in jobs.jobs(rates, scale, {})}
  for index, name in enumerate(('conic, 0.03', 'conic, 0.06', 'conic, 0.12', 'simclr, 0.03')):
    jobs.append(found[name], {'figures': {'knn_top1': 0.3, 'linear_top1': 0.1 * (index % 3)}}, tmp_path)
  chosen = tuned(scale, jobs.read('cpu', tmp_path))
  assert chosen == {'conic': {'optimizer.learning_rate': 0.12, 'classifier.lr_scale': 5.5}}
  assert {job.settings['optimizer.learning_rate'] for job in jobs.jobs(conic_alpha, scale, chosen)} == {0.12}
  assert {job.settings['data.test'] for job in found.values()} == {'choose'}
