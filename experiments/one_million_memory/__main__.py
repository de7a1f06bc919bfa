"""Memory of instance classification by compilation: One-Million's Table 1 and Figure 3.

  python -m experiments.one_million_memory                     all plans that are missing, table, picture
  python -m experiments.one_million_memory --hardware v5e:8x8  the plans of one hardware only
  python -m experiments.one_million_memory --draw              table and picture from the plans that are there

Every plan is a run of `conic_jax.plan`, kept in plans/; delete a file to make it anew.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PLANS = HERE / 'plans'
IMAGENET_1K, IMAGENET_21K = 1_281_167, 14_197_122
OURS, COPIED = 'one_million', 'data_parallel'
# Instances to plan for, by hardware and method.
SIZES = {
  ('64xV100-32GB', OURS): (10_000, 100_000, IMAGENET_1K, IMAGENET_21K, 100_000_000, 1_000_000_000),
  ('64xV100-32GB', COPIED): (10_000, 100_000, IMAGENET_1K, 4_700_000, IMAGENET_21K),
  ('v5e:8x8', OURS): (IMAGENET_1K, IMAGENET_21K),
  ('v5e:8x8', COPIED): (IMAGENET_1K,),
}
# Table 1 (GB a device) and Figure 3 (most classes) of the paper, both on 64 V100 with 32 GB.
PAPER_MEMORY = {(COPIED, IMAGENET_1K): 15.6, (OURS, IMAGENET_1K): 9.18, (OURS, IMAGENET_21K): 21.51}
PAPER_LARGEST = {COPIED: 4_700_000, OURS: 30_000_000}
# From here on the table of hardest classes is left out: they are found for each batch.
BATCH_TABLE_FROM = 1_000_000_000
LABELS = {OURS: 'rows split (ours)', COPIED: 'rows copied (data parallel)'}
COLOURS = {OURS: 'tab:blue', COPIED: 'tab:red'}


def file_of(hardware: str, method: str, size: int | None) -> Path:
  """Where a plan is kept; a size of None is the search for the most instances."""
  return PLANS / f'{hardware.replace(":", "-")}_{method}_{size or "largest"}.json'


def make_plan(hardware: str, method: str, size: int | None) -> None:
  """Runs the plan command."""
  command = [sys.executable, '-m', 'conic_jax.plan', f'--config=configs/{method}.py',
             f'--topology={hardware}', f'--json={file_of(hardware, method, size)}']
  command += [f'--config.num_instances={size}'] if size else ['--largest-n']
  if method == OURS and (size is None or size >= BATCH_TABLE_FROM):
    command.append('--config.smoothing.table=batch')
  print(' '.join(['python', *command[1:]]), flush=True)
  subprocess.run(command, check=True)


def load(hardware: str, method: str, size: int | None) -> dict[str, Any] | None:
  """A plan that was made, or None."""
  path = file_of(hardware, method, size)
  return json.loads(path.read_text()) if path.exists() else None


def gigabytes(plan: dict[str, Any] | None) -> str:
  """The peak of a plan, for the table."""
  if plan is None:
    return '—'
  peak = 'refused' if plan['peak_bytes'] is None else f'{plan["peak_bytes"] / 1e9:.2f} GB'
  return peak if plan['fits'] else f'{peak}, does not fit'


def milliseconds(plan: dict[str, Any]) -> str:
  """The kernels' time in a step, from the cheapest to the dearest branches, and what bounds it."""
  if not plan.get('least'):  # Refused, or made before plans had it.
    return '— | —'
  both = plan['least'], plan
  times = dict.fromkeys(f'{1e3 * each["kernel_seconds"]:,.0f}' for each in both)
  return f'{" to ".join(times)} ms | {" or ".join(dict.fromkeys(each["bound"] for each in both))}'


def table() -> str:
  """results.md, from the plans that are there."""
  def paper(method: str, size: int) -> str:
    if (method, size) in PAPER_MEMORY:
      return f'{PAPER_MEMORY[method, size]} GB'
    return 'out of memory' if size >= PAPER_LARGEST[method] else '—'

  first = '64xV100-32GB'
  lines = ['# Memory of a device, and the most classes', '', '`python -m experiments.one_million_memory`', '',
           'Batch 4096 × 2 views, ResNet-50; float16 on V100, bfloat16 on TPU. Peaks from the compilers; '
           '1 GB is 10⁹ bytes.', '', "## The paper's Table 1, on 64 V100 with 32 GB", '',
           '| data | classes | copied, paper | copied, here | split, paper | split, here |',
           '| --- | ---: | ---: | ---: | ---: | ---: |']
  for name, size in (('ImageNet-1K', IMAGENET_1K), ('ImageNet-21K', IMAGENET_21K)):
    lines.append(f'| {name} | {size:,} | ' + ' | '.join(
      f'{paper(method, size)} | {gigabytes(load(first, method, size))}' for method in (COPIED, OURS)) + ' |')
  lines += ['', "## The paper's Figure 3: the most classes", '',
            '| hardware | rows | paper | here, seen to fit | seen not to fit |',
            '| --- | --- | ---: | ---: | ---: |']
  for hardware, method in SIZES:
    if found := load(hardware, method, None):
      said = f'{PAPER_LARGEST[method]:,}' if hardware == first else '—'
      over = min((each['num_instances'] for each in found['search'] if not each['fits']), default=None)
      lines.append(f'| {hardware} | {LABELS[method]} | {said} | {found["largest_n"]:,} | '
                   f'{"—" if over is None else f"{over:,}"} |')
  lines += ['', '## All plans', '',
            'A step takes at least the time given; two times are with the cheapest and with the dearest '
            'branches, as the data choose.', '',
            '| hardware | rows | classes | arguments | temporaries | peak | limit | a step | bound by |',
            '| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |']
  for (hardware, method), sizes in SIZES.items():
    for size in (*sizes, None):
      if made := load(hardware, method, size):
        gb = lambda name, made=made: '—' if made[name] is None else f'{made[name] / 1e9:.2f}'
        lines.append(f'| {hardware} | {LABELS[method]} | {made["num_instances"]:,} | '
                     f'{gb("arguments_bytes")} | {gb("temp_bytes")} | {gigabytes(made)} | '
                     f'{gb("limit_bytes")} | {milliseconds(made)} |')
  return '\n'.join(lines) + '\n'


def draw(path: Path) -> None:
  """The picture: peak over classes, for each hardware and method."""
  hardware = list(dict.fromkeys(hardware for hardware, _ in SIZES))
  figure, panels = plt.subplots(1, len(hardware), figsize=(5.2 * len(hardware), 4), sharey=True,
                                squeeze=False)
  for axes, name in zip(panels[0], hardware):
    for method in (OURS, COPIED):
      plans = [made for size in (*SIZES[name, method], None) if (made := load(name, method, size))]
      plans += [step for made in plans for step in made.get('search', ())]
      points = sorted({(made['num_instances'], made['peak_bytes'] / 1e9, made['limit_bytes'] / 1e9)
                       for made in plans if made['peak_bytes'] is not None})
      if not points:
        continue
      sizes, peaks, limits = zip(*points)
      between = np.geomspace(sizes[0], sizes[-1], 200)  # Memory is a line in N, bent by the axis.
      axes.plot(between, np.interp(between, sizes, peaks), '-', color=COLOURS[method], label=LABELS[method])
      axes.plot(sizes, peaks, 'o', color=COLOURS[method], markersize=4)
      axes.axhline(limits[0], color='grey', linestyle='--', linewidth=1)
      axes.annotate(f'usable: {limits[0]:.1f} GB', (6e3, limits[0]), xytext=(0, -11), color='grey',
                    textcoords='offset points', fontsize=8)
      if found := load(name, method, None):
        axes.annotate(f'{found["largest_n"] / 1e6:,.2f} million', (found['largest_n'], limits[0]), ha='right',
                      xytext=(-6, 4), textcoords='offset points', color=COLOURS[method], fontsize=8)
      if name == hardware[0]:
        sizes, peaks = zip(*((size, peak) for (of, size), peak in PAPER_MEMORY.items() if of == method))
        axes.plot(sizes, peaks, 'x', color=COLOURS[method], markersize=7, label=f'the paper, {LABELS[method]}'
                  .replace(' (ours)', ' (its DHP)').replace(' (data parallel)', ' (its DDP)'))
    axes.set(title=name, xscale='log', xlabel='classes', xlim=(5e3, 5e9), ylim=(0, 50))
    axes.legend(fontsize=8, loc='upper left')
  panels[0][0].set_ylabel('peak memory of a device (GB)')
  figure.tight_layout()
  figure.savefig(path, dpi=120)


def main() -> None:
  """Makes the missing plans, the table and the picture."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--hardware', help='plans of this hardware only')
  parser.add_argument('--draw', action='store_true', help='make no plans')
  args = parser.parse_args()
  PLANS.mkdir(exist_ok=True)
  for (hardware, method), sizes in SIZES.items():
    if not args.draw and args.hardware in (None, hardware):
      for size in (*sizes, None):
        if load(hardware, method, size) is None:
          make_plan(hardware, method, size)
  (HERE / 'results.md').write_text(table())
  draw(HERE / 'memory.png')
  print(table())


if __name__ == '__main__':
  main()
