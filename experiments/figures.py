"""Results of a finished run, read from its files."""
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conic_jax.run.verdict import setting
from experiments.jobs import Job

# Averaged over the last epoch's reports; `LAST` is taken from the last report.
AVERAGED = ('loss', 'loss_instance', 'loss_consistency', 'instance_top1', 'feature_std', 'alignment',
            'uniformity', 'consistency_weight')
BY_EPOCH = ('loss_instance', 'alignment', 'uniformity')
LAST = ('probe_instance_top1', 'probe_rankme', 'probe_lidar', 'probe_std', 'verdict')
EVALUATED = ('knn_top1', 'linear_top1', 'num_images')
BASELINES = ('random_init', 'pixels')


def describe(job: Job, folder: Path) -> dict[str, Any]:
  """The contents of the run's line: figures, library versions, and what the recipe chose.

  Args:
    job: the run.
    folder: its run folder.
  """
  found: dict[str, Any] = {}
  line: dict[str, Any] = {'figures': found}
  if job.config:
    config, summary = (json.loads((folder / name).read_text()) for name in ('config.json', 'summary.json'))
    found |= of_training(read_reports(folder), config['log_every'])
    found |= of_evaluation(summary) | {'epochs': config['epochs']}
    line['versions'] = config['versions']
    if reasons := config.get('recipe', {}).get('reasons'):
      line['chosen'] = {field: setting(config, field) for field, _ in reasons
                        if not field.startswith('data.')}
  for step in job.after:
    result = json.loads((folder / step.file).read_text())
    found |= {name: result[name] for name in step.names}
  return line


def read_reports(folder: Path) -> list[dict[str, Any]]:
  """All lines of metrics.jsonl."""
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def of_training(reports: Sequence[Mapping[str, Any]], log_every: int) -> dict[str, Any]:
  """Means over the last epoch and over every epoch, and the last probe."""
  # A resumed run also reports its first step; the last step is always reported.
  regular = [report for report in reports
             if report['step'] % log_every == 0 or report['step'] == reports[-1]['step']]
  last_epoch = [report for report in regular if report['epoch'] > reports[-1]['epoch'] - 1]
  found: dict[str, Any] = {}
  for name in AVERAGED:
    if values := [report[name] for report in last_epoch if name in report]:
      found[name] = sum(values) / len(values)
  found |= {name: report[name] for report in reports for name in LAST if name in report}
  return found | {'by_epoch': by_epoch(regular)}


def of_evaluation(summary: Mapping[str, Any]) -> dict[str, Any]:
  """Accuracies of the encoder, and of the baselines if measured, such as 'pixels_knn_top1'."""
  found = {name: summary[name] for name in EVALUATED if name in summary}
  return found | {f'{where}_{name}': summary[where][name] for where in BASELINES if where in summary
                  for name in EVALUATED if name in summary[where]}


def by_epoch(reports: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
  """Means over each epoch's reports, for the figures that all reports have."""
  epochs: dict[int, list[Mapping[str, Any]]] = {}
  for report in reports:
    if 'loss' in report:
      epochs.setdefault(math.ceil(report['epoch']), []).append(report)
  return {name: [round(sum(report[name] for report in epoch) / len(epoch), 5) for epoch in epochs.values()]
          for name in BY_EPOCH if all(name in report for epoch in epochs.values() for report in epoch)}
