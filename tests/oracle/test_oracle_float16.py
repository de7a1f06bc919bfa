"""Steps that overflow in float16 beside the plain loop."""
import plain
import pytest
import test_oracle_conic as conic
import test_oracle_sampled as sampled

pytestmark = pytest.mark.slow


def test_float16_skips_what_overflows_as_the_plain_loop_does(oracle_config, monkeypatch):
  config = oracle_config('conic', dtype='float16', temperature=0.05, **{
    **conic.CHANGES, 'optimizer.learning_rate': 0.003})
  for *_, wanted in plain.trainings(config, conic.learner_of, (1,), monkeypatch, plain.FLOAT16):
    assert wanted.rates[0] is None
    assert wanted.rates[-1] is not None


def test_rows_outside_stand_still_where_float16_skips_a_step(oracle_config, monkeypatch):
  config = oracle_config('conic_s', images=sampled.IMAGES, dtype='float16', temperature=0.05, epochs=2, **{
    **sampled.CONIC_S, 'optimizer.learning_rate': 0.0005, 'classifier.weight_decay': 0.5,
    'classifier.store': 'host', 'checkpoint.keep': 2})
  for *_, wanted in plain.trainings(config, sampled.learner_of, (1,), monkeypatch, plain.FLOAT16):
    assert wanted.rates[0] is None
    assert wanted.rates[-1] is not None
