"""Steps that overflow in float16 beside the plain loop."""
import plain
import pytest
import test_oracle_conic as conic
import test_oracle_sampled as sampled
from xla_flags import with_mlir_kernels

pytestmark = pytest.mark.slow


@with_mlir_kernels
def test_float16_skips_what_overflows_as_the_plain_loop_does(oracle_config, monkeypatch):
  config = oracle_config('conic', **conic.CHANGES, dtype='float16', temperature=0.05)
  for *_, wanted in plain.trainings(config, conic.learner_of, (1,), monkeypatch, plain.FLOAT16):
    assert wanted.rates[0] is None
    assert wanted.rates[-1] is not None


@with_mlir_kernels
def test_rows_outside_stand_still_where_float16_skips_a_step(oracle_config, monkeypatch):
  config = oracle_config(
    'conic_s', images=sampled.IMAGES, **sampled.CONIC_S, temperature=0.05, dtype='float16', epochs=2,
    **{'classifier.store': 'host', 'checkpoint.keep': 2})
  for *_, wanted in plain.trainings(config, sampled.learner_of, (1,), monkeypatch, plain.FLOAT16):
    assert wanted.rates[0] is None
    assert wanted.rates[-1] is not None
