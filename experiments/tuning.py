"""The learning rate for each config's runs, from the results of experiments/rates."""
from collections.abc import Mapping
from typing import Any

from experiments import jobs, rates
from experiments.jobs import Experiment, Job, Scale

FIELDS = ('optimizer.learning_rate', 'classifier.lr_scale')
BY = ('knn_top1', 'linear_top1')


def tuned(scale: Scale, results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """The fields of the best run, for each config whose rates were all tried.

  The best run has the highest mean of kNN and linear accuracy on held-out training images; a run that
  diverged is never best.

  Args:
    scale: the scale of the runs.
    results: the lines of finished runs.
  """
  tried: dict[str, list[tuple[float, dict[str, Any]]]] = {}
  asked: dict[str, int] = {}
  for job in jobs.jobs(rates.EXPERIMENT, scale, {}):
    asked[job.config] = asked.get(job.config, 0) + 1
    if job.key in results:
      figures = results[job.key]['figures']
      fields = {name: job.settings[name] for name in FIELDS if name in job.settings}
      tried.setdefault(job.config, []).append((sum(figures.get(name, -1) for name in BY), fields))
  return {config: max(found, key=lambda each: each[0])[1] for config, found in tried.items()
          if len(found) == asked[config]}


def needed_rates(experiment: Experiment, scale: Scale, chosen: Mapping[str, Mapping[str, Any]]) -> list[Job]:
  """The tuning runs that an experiment still waits for."""
  if not (experiment.tuned and scale.tuned):
    return []
  configs = {variant.rate_of or variant.config for variant in experiment.variants(scale).values()}
  waiting = configs - set(chosen)
  return [job for job in jobs.jobs(rates.EXPERIMENT, scale, {}) if job.config in waiting]
