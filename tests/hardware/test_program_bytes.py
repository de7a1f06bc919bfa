"""Bytes of whole programs, against counts by hand and XLA's own, on every compiler that is installed."""
from importlib.metadata import version

import pytest
from support import devices_or_skip

from benchmarks import plan_bytes

TOLERANCE = 0.1


@pytest.fixture(scope='module', params=plan_bytes.TOPOLOGIES)
def platform_and_devices(request):
  """A platform, and the devices to compile for."""
  return request.param, devices_or_skip(plan_bytes.TOPOLOGIES[request.param])


@pytest.mark.slow
@pytest.mark.skipif(not version('jaxlib').startswith('0.10.'), reason='counts the kernels of jaxlib 0.10')
@pytest.mark.parametrize('program', plan_bytes.PROGRAMS, ids=lambda program: program.name)
def test_bytes_are_those_counted_by_hand_and_by_xla(program, platform_and_devices):
  platform, devices = platform_and_devices
  compiled = plan_bytes.compile_program(program, platform, devices)
  least, most = plan_bytes.counts(compiled)
  assert most == pytest.approx(program.count(platform), rel=TOLERANCE)
  assert least == pytest.approx(program.count(platform, least=True), rel=TOLERANCE, abs=1e4)
  if program.comparable and platform in plan_bytes.XLA_COUNTS:
    assert most == pytest.approx(plan_bytes.xlas_count(compiled), rel=TOLERANCE)
