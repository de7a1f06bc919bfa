"""The scripts for Slurm and Kubernetes: linted, their fields checked, and the Slurm script run for real."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import flags_of, losses_by_step, reserved_port
from xla_flags import xla_flags

from conic_jax import main
from conic_jax.hardware.watch import LOST

ROOT = Path(__file__).parent.parent
SLURM, JOBSET = ROOT / 'docs/cluster/slurm.sh', ROOT / 'docs/cluster/jobset.yaml'
SHELLCHECK = shutil.which('shellcheck') or shutil.which('shellcheck', path=str(Path(sys.executable).parent))

# What srun does with two tasks of a node: processes with Slurm's variables, and its exit code, the highest.
# Of the first start, the second task is killed once there is a checkpoint.
SRUN = """#!/usr/bin/env bash
echo "$*" >>"$TRIAL/starts"
while [[ $1 == --* ]]; do shift; done
errors="$TRIAL/errors-$(wc -l <"$TRIAL/starts")"
export SLURM_JOB_ID=7 SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" >"$TRIAL/task-$task" 2>"$errors-$task" &
  pids[task]=$!
done
if [[ $(wc -l <"$TRIAL/starts") == 1 ]]; then
  until compgen -G "$TRIAL/run/checkpoints/[1-9]" >/dev/null; do sleep 0.1; done
  kill -9 "${pids[1]}"
fi
code=0
for pid in "${pids[@]}"; do
  wait "$pid"
  last=$?
  ((last > code)) && code=$last
done
exit "$code"
"""


@pytest.mark.skipif(SHELLCHECK is None, reason='shellcheck is not installed')
def test_the_linter_has_nothing_to_say():
  done = subprocess.run([str(SHELLCHECK), str(SLURM)], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stdout) == (0, '')


def script(folder, *programs, arguments=(), **environment):
  """Runs the Slurm script with these programs, (name, content) each, before all others."""
  (folder / 'bin').mkdir()
  for name, content in programs:
    (folder / 'bin' / name).write_text(content)
    (folder / 'bin' / name).chmod(0o755)
  return subprocess.run(
    [str(SLURM), *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    env={**os.environ, 'PATH': f"{folder / 'bin'}:{os.environ['PATH']}", 'TRIAL': str(folder),
         'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT), 'PAUSE': '0', **environment})


@pytest.mark.slow
def test_the_slurm_script_starts_a_run_again_that_lost_a_process(tiny_config, tmp_path):
  tiny_config.run, tiny_config.checkpoint.every_epochs = str(tmp_path / 'run'), 1 / 3
  tiny_config.eval.update(knn=False, linear=False)
  with reserved_port() as port:
    done = script(tmp_path, ('srun', SRUN), arguments=[*flags_of(tiny_config), '--lost_after=6'],
                  JAX_COORDINATOR_PORT=str(port), XLA_FLAGS=xla_flags(2))
  assert done.returncode == 0, (done.stderr, [path.read_text() for path in tmp_path.glob('errors-*')])
  assert len((tmp_path / 'starts').read_text().splitlines()) == 2
  assert 'Process 1 of 2' in (tmp_path / 'errors-1-0').read_text()
  assert 'they start again' in done.stderr
  assert (tmp_path / 'run/summary.json').exists()
  assert sorted(losses_by_step(tmp_path / 'run')) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(('codes', 'ends', 'starts'), [
  ([1], 1, 1), ([LOST, 0], 0, 2), ([137, LOST, 2], 2, 3), ([LOST] * 9, LOST, 3), ([LOST, 143], 0, 2)])
def test_the_slurm_script_reads_the_exit_code(tmp_path, codes, ends, starts):
  (tmp_path / 'codes').write_text(''.join(f'{code}\n' for code in codes))
  srun = ('#!/usr/bin/env bash\necho start >>"$TRIAL/starts"\n'
          'exit "$(sed -n "$(wc -l <"$TRIAL/starts")p" "$TRIAL/codes")"\n').replace('\\\n', '\n')
  scontrol = '#!/usr/bin/env bash\necho "$*" >>"$TRIAL/told"\n'
  done = script(tmp_path, ('srun', srun), ('scontrol', scontrol), RESTARTS='2', SLURM_JOB_ID='7')
  assert done.returncode == ends
  assert len((tmp_path / 'starts').read_text().splitlines()) == starts
  told = tmp_path / 'told'
  assert (told.read_text() if told.exists() else '') == ('requeue 7\n' if 143 in codes else '')


def test_the_jobset_starts_all_again_but_for_a_mistake_in_the_command():
  jobset = yaml.safe_load(JOBSET.read_text())
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] > 0
  rule, = policy['rules']
  assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
  assert re.fullmatch('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  assert job['backoffLimit'] == 0
  exit_codes = job['podFailurePolicy']['rules'][0]['onExitCodes']
  assert exit_codes['operator'] == 'In'
  assert LOST not in exit_codes['values']
  assert 1 in exit_codes['values']
  assert job['template']['spec']['restartPolicy'] == 'Never'


def test_the_jobsets_processes_find_each_other():
  jobset = yaml.safe_load(JOBSET.read_text())
  name, workers = jobset['metadata']['name'], jobset['spec']['replicatedJobs'][0]
  job = workers['template']['spec']
  container, = job['template']['spec']['containers']
  assert container['name'] == job['podFailurePolicy']['rules'][0]['onExitCodes']['containerName']
  assert container['command'] == ['python', '-m', 'conic_jax.main']
  own, = container['env']
  assert own['valueFrom']['fieldRef']['fieldPath'].endswith("['batch.kubernetes.io/job-completion-index']")
  argv = ['main', *(argument.replace(f"$({own['name']})", '3') for argument in container['args'])]
  values = main.define_flags(argv)
  values(argv)
  place = main.place_of(values)
  assert place is not None
  assert (workers['replicas'], job['completionMode']) == (1, 'Indexed')
  assert place.count == job['completions'] == job['parallelism']
  assert (place.host, place.index) == (f"{name}-{workers['name']}-0-0.{name}", 3)
  assert place.port == container['ports'][0]['containerPort']
  assert values.config.run.startswith('gs://')
  volumes = {volume['name'] for volume in job['template']['spec']['volumes']}
  assert {mount['name'] for mount in container['volumeMounts']} == volumes
