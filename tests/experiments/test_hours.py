"""How long the papers' own scales take."""
import pytest

from experiments import hours, jobs
from experiments.scales import CONFIGS, SCALES


def test_hours_count_the_images_of_all_runs():
  conic_batch = jobs.load(['conic_batch'])[0]
  scale = SCALES['imagenet']
  seconds = dict.fromkeys(CONFIGS, 1e-3)
  runs = 3 * (3 * 200 + 3 * 200)
  assert hours.hours_of(conic_batch, scale, seconds) == pytest.approx(runs * 1_281_167 * 1e-3 / 3600)
  prior = jobs.load(['one_million_prior'])[0]
  assert hours.hours_of(prior, scale, seconds) == pytest.approx(
    3 * (2 * (10 + 25 + 50 + 200) + 25) * 1_281_167 * 1e-3 / 3600)


def test_what_has_no_plan_is_named():
  assert hours.hours_of(jobs.load(['co2'])[0], SCALES['imagenet'], {'conic': 1e-3}) is None
  page = hours.page('8xA100-80GB', {'conic': 1e-4})
  assert '| [co2](co2/README.md) | 27 | not planned yet | not planned yet |' in page


@pytest.mark.slow
def test_the_page_has_every_experiment_that_trains():
  page = hours.page('8xA100-80GB', dict.fromkeys(CONFIGS, 1e-4))
  for name in ('conic_alpha', 'all_methods', 'one_million_parts', 'co2', 'inscon_heads'):
    assert f'| [{name}]({name}/README.md) |' in page
  assert '| [rates]' not in page
  assert '--scale=imagenet100' in page
