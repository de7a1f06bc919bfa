"""Does ViT-B fit, with how many rows? The plan command's answers for a TPU slice and a GPU server.

  python -m benchmarks.transformers

The compilers are extras, `pip install -e '.[tpu,plan-gpu]'`; the hardware is not needed. The times are the
plan's lower bounds.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.hardware import hardware

ROOT = Path(__file__).parent.parent
TABLE = ROOT / 'benchmarks' / 'results' / 'transformers.md'
TOPOLOGIES, INSTANCES = ('v5e:8x8', '8xH100-80GB'), (1_281_167, 100_000_000)
SETTINGS = ('--config.encoder.name=vit_base', '--config.optimizer.name=adamw')
# Images a step: of the paper on the TPUs, and as many as fit on fewer devices.
BATCHES = {'v5e:8x8': 4096, '8xH100-80GB': 2048}


def plan(topology: str, num_instances: int) -> dict[str, Any]:
  """The plan for a topology and a number of rows."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, 'plan.json')
    subprocess.run([sys.executable, '-m', 'conic_jax.plan', f'--config={ROOT}/configs/conic.py', *SETTINGS,
                    f'--topology={topology}', f'--config.batch_size={BATCHES[topology]}',
                    f'--config.num_instances={num_instances}', f'--json={path}'],
                   check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return json.loads(path.read_text())


def row(topology: str, num_instances: int) -> str:
  """A row of the table."""
  made = plan(topology, num_instances)
  shown = (topology, f'{num_instances:,}', str(made['batch_size']), made['dtype'],
           f'{made["peak_bytes"] / 1e9:.1f} of {made["limit_bytes"] / 1e9:.1f}',
           'yes' if made['fits'] else 'no', f'{1e3 * made["least"]["kernel_seconds"]:.0f}',
           f'{1e3 * made["least"]["communication_seconds"]:.1f}', made['least']['bound'])
  print(*shown, flush=True)
  return f'| {" | ".join(shown)} |'


def main() -> None:
  """Plans, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.parse_args()
  rows = [row(topology, count) for topology in TOPOLOGIES for count in INSTANCES]
  TABLE.write_text('\n'.join([
    '# ConIC with ViT-B/16 at 224 pixels', '', '`python -m benchmarks.transformers`', '',
    f'Compiled on {hardware()}', '',
    'The training step as compiled for hardware that is not here; the milliseconds are lower bounds.', '',
    '| devices | rows | images a step | type | GB of a device | fits | kernels, ms | collectives, ms | '
    'bound by |', '| --- | ---: | ---: | --- | ---: | --- | ---: | ---: | --- |', *rows]) + '\n')
  print(TABLE.read_text())


if __name__ == '__main__':
  main()
