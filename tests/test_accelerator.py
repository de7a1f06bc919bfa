"""The one command for the day that a GPU or a TPU is at hand: on a CPU, with failures, and its names."""
from pathlib import Path

import jax
import pytest

from benchmarks import accelerator, accelerator_head, accelerator_step, head
from conic_jax.hardware import topologies
from conic_jax.losses import fused_negatives
from conic_jax.memories import fused_sgd


@pytest.fixture
def run(tmp_path, capsys):
  """Runs the command: its exit code, and the rows of its table without the head."""
  def run():
    code = accelerator.main(['--results', str(tmp_path)])
    path = Path(capsys.readouterr().out.splitlines()[-1].partition(':')[0])
    assert path.parent == tmp_path
    assert path.with_suffix('.png').stat().st_size > 1000
    rows = [[cell.strip() for cell in line.strip('|').split('|')]
            for line in path.read_text().splitlines() if line.startswith('| ')]
    return code, rows[2:]
  return run


@pytest.mark.slow
def test_a_cpu_runs_all_parts_with_small_shapes(run):
  code, rows = run()
  assert code == 0
  assert not [row for row in rows if 'failed' in row[2]]
  checked = {row[1] for row in rows if row[0] == 'correctness'}
  assert checked == {f'{form}, {dtype}: {quantity}' for form in ('xla', 'triton', 'mosaic')
                     for dtype in ('float32', 'bfloat16', 'float16')
                     for quantity in ('loss', 'gradient of the features', 'rows', 'momentum',
                                      "other rows' gradient")}
  assert {row[0] for row in rows} == {'correctness', 'head', 'plan', 'step', 'input'}
  ratios = {row[1]: float(row[4]) for row in rows if row[4]}
  assert ratios['whole step to its encoder'] > 0
  assert ratios['input to step'] > 0


@pytest.mark.slow
def test_a_kernel_that_fails_is_a_row_and_the_rest_goes_on(run, monkeypatch):
  def broken(*inputs):
    raise ValueError('no such | instruction\nat line 7')
  monkeypatch.setattr(fused_negatives, 'triton', broken)
  monkeypatch.setattr(accelerator_step, 'measure', broken)
  code, rows = run()
  assert code == 1
  failed = [row for row in rows if 'failed' in row[2]]
  assert [row[:2] for row in failed] == [
    *(['correctness', f'triton, {dtype}'] for dtype in ('float32', 'bfloat16', 'float16')),
    ['step', 'as a whole']]
  assert {row[2] for row in failed} == {'**failed** ValueError: no such / instruction'}
  assert any(row[1] == 'mosaic, float16: momentum' for row in rows)
  assert any(row[0] == 'head' for row in rows)


@pytest.mark.slow
def test_a_wrong_result_fails_and_a_failed_time_does_not(run, monkeypatch):
  def broken(*inputs):
    raise ValueError('no time')
  monkeypatch.setattr(accelerator_head, 'TOLERANCES', {'float32': 1e-4})
  monkeypatch.setattr(accelerator_head, 'measure', broken)
  monkeypatch.setattr(accelerator_step, 'measure', broken)
  assert run()[0] == 0
  kernel = fused_negatives.mosaic
  for wrong in (1.01, float('nan')):
    monkeypatch.setattr(fused_negatives, 'mosaic', lambda *inputs, wrong=wrong: (
      lambda sums: sums._replace(weighted=wrong * sums.weighted))(kernel(*inputs)))
    code, rows = run()
    assert code == 1
    assert [row[1] for row in rows if 'failed' in row[2] and row[0] == 'correctness'] == [
      'mosaic, float32: gradient of the features']


@pytest.mark.parametrize(('platform', 'kind', 'expected'), [
  ('gpu', 'NVIDIA H100 80GB HBM3', '1xH100-80GB'), ('gpu', 'NVIDIA H100 PCIe', '1xH100-80GB'),
  ('gpu', 'NVIDIA H200', '1xH200-141GB'), ('gpu', 'NVIDIA A100-SXM4-40GB', '1xA100-40GB'),
  ('gpu', 'NVIDIA A100-SXM4-80GB', '1xA100-80GB'), ('gpu', 'Tesla V100-SXM2-32GB', '1xV100-32GB'),
  ('gpu', 'NVIDIA GeForce RTX 4090', None), ('gpu', 'NVIDIA A800', None), ('cpu', 'cpu', None),
  ('tpu', 'TPU v4', 'v4:1x1x1'), ('tpu', 'TPU v5 lite', 'v5e:1x1'), ('tpu', 'TPU v5p', 'v5p:1x1x1'),
  ('tpu', 'TPU v6 lite', 'v6e:1x1'), ('tpu', 'TPU v9', None)])
def test_a_device_is_found_in_the_table_of_hardware(platform, kind, expected):
  found = accelerator.topology_of(platform, kind)
  assert found == (expected and topologies.parse(expected))


def test_a_known_device_has_a_floor_and_a_plan(monkeypatch):
  device = jax.devices()[0]
  setting = accelerator.choose(device, small=True)._replace(where=topologies.parse('1xH100-80GB'))
  report = accelerator.Report()
  accelerator_head.measure(report, setting)
  ratios = {(row.part, row.name): row.ratio for row in report.rows if row.ratio is not None}
  assert set(ratios) == {('head', 'xla to its floor'), ('plan', 'head, xla')}
  # XLA's form moves more than the floor's bytes: the plan is the larger time.
  assert 1 < ratios['plan', 'head, xla'] < ratios['head', 'xla to its floor']


def test_where_pytorch_has_a_gpu_it_takes_turns_with_the_head(monkeypatch):
  """Here on the CPU, in the place of a GPU."""
  pytest.importorskip('torch')
  make = head.torch_variant
  monkeypatch.setattr(accelerator_head, 'has_cuda_torch', lambda: True)
  monkeypatch.setattr(head, 'torch_variant', lambda problem, metric_learning, device: make(
    problem, metric_learning, {'cuda': 'cpu'}[device]))
  report = accelerator.Report()
  accelerator_head.measure(report, accelerator.choose(jax.devices()[0], small=True))
  ratios = {row.name: row.ratio for row in report.rows if row.ratio is not None}
  assert set(ratios) == {'xla to PyTorch'}
  assert ratios['xla to PyTorch'] > 0
  assert {row.name for row in report.rows} == {'xla', 'xla to PyTorch', 'head, xla', 'PyTorch'}


@pytest.mark.parametrize(('part', 'passed'), [('head', True), ('correctness', False)])
def test_nothing_starts_once_the_time_is_over(part, passed):
  report = accelerator.Report(seconds=-1)
  assert report.attempt(part, 'late', lambda: pytest.fail('started')) is None
  assert [(row.found, row.passed) for row in report.rows] == [('not measured', passed)]


def test_rows_that_forget_their_momentum_are_wrong(monkeypatch):
  kernel = fused_sgd.mosaic
  monkeypatch.setattr(fused_sgd, 'mosaic', lambda weights, velocity, *inputs: kernel(
    weights, 0 * velocity, *inputs))
  monkeypatch.setattr(accelerator_head, 'TOLERANCES', {'float32': 1e-4})
  report = accelerator.Report()
  accelerator_head.check(report, accelerator.choose(jax.devices()[0], small=True))
  assert not report.is_correct
  failed = {row.name for row in report.rows if not row.passed}
  assert "mosaic, float32: other rows' gradient" in failed
  assert all(name.startswith('mosaic') for name in failed)
