"""Estimates the hours of the papers' own scales: writes large.md from plans of the compiled train steps.

  pip install -e '.[plan-gpu]'
  python -m experiments.hours --topology=8xA100-80GB

One step of every config is compiled for the topology, which need not be present, and the plan's time for it
is kept in hours.json. This is a lower bound for the kernels and collectives; reading images and evaluation
come on top.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conic_jax.command_line import load
from experiments import jobs
from experiments.jobs import HERE, Scale
from experiments.scales import CONFIGS, SCALES

KEPT = HERE / 'hours.json'
LARGE = ('imagenet100', 'imagenet')
NOTE = ('Hours of {topology} for the kernels and collectives of the train steps alone, as '
        '`python -m conic_jax.plan` counts them: a lower bound. None of these runs was made.')


def main() -> None:
  """Plans the missing configs and writes the page."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--topology', default='8xA100-80GB')
  args = parser.parse_args()
  kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
  seconds = kept.setdefault(args.topology, {})
  for config in CONFIGS:
    if config not in seconds:
      seconds[config] = seconds_an_image(config, args.topology)
      KEPT.write_text(json.dumps(kept, indent=1) + '\n')
      (HERE / 'large.md').write_text(page(args.topology, seconds))
  (HERE / 'large.md').write_text(page(args.topology, seconds))


def seconds_an_image(config: str, topology: str) -> float:
  """Seconds of training per ImageNet image, from the plan for the paper's batch."""
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / 'plan.json'
    subprocess.run([sys.executable, '-m', 'conic_jax.plan', f'--config=configs/{config}.py',
                    f'--topology={topology}', '--config.num_instances=1281167', f'--json={out}'], check=True)
    plan = json.loads(out.read_text())
  least = plan['least']
  return (least['kernel_seconds'] + least['communication_seconds']) / plan['batch_size']


def page(topology: str, seconds: Mapping[str, float]) -> str:
  """The commands of both scales, and a row for each experiment."""
  run = 'python -m experiments.run NAME --data=SETS --scale='
  rows = ['# ImageNet-100 and ImageNet', NOTE.format(topology=topology),
          f'```\n{run}imagenet100    # SETS/imagenet100/train and val\n'
          f'{run}imagenet       # SETS/tfds, prepared by TFDS\n```']
  table = ['| experiment | runs | hours: ImageNet-100 | ImageNet |', '| --- | ---: | ---: | ---: |']
  for experiment in jobs.load(jobs.all_names()):
    if experiment.tuned and not experiment.pools and experiment.variants(SCALES[LARGE[0]]):
      hours = [hours_of(experiment, SCALES[name], seconds) for name in LARGE]
      count = len(jobs.jobs(experiment, SCALES[LARGE[1]], {}))
      table.append(f'| [{experiment.name}]({experiment.name}/README.md) | {count} '
                   f'| {" | ".join(map(shown, hours))} |')
  return '\n\n'.join([*rows, '\n'.join(table)]) + '\n'


def shown(hours: float | None) -> str:
  """Whole hours."""
  return 'not planned yet' if hours is None else f'{hours:,.0f}'


def hours_of(experiment: jobs.Experiment, scale: Scale, seconds: Mapping[str, float]) -> float | None:
  """Hours of all runs, None if a config has no plan; assumes an image costs the same in every batch."""
  grid = [job for job in jobs.jobs(experiment, scale, {}) if job.config]
  if any(job.config not in seconds for job in grid):
    return None
  return sum(epochs(job.config, scale, job.settings) * scale.images * seconds[job.config]
             for job in grid) / 3600


def epochs(config: str, scale: Scale, settings: Mapping[str, Any]) -> int:
  """Epochs of a run: from its settings, or the config's own."""
  if 'epochs' in settings:
    return settings['epochs']
  own: Any = load(f'configs/{config}.py:{scale.preset}')
  return own.epochs


if __name__ == '__main__':
  main()
