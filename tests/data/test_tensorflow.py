"""TensorFlow is imported without Keras, which is there all the same for who wants it."""
import subprocess
import sys

import pytest

from conic_jax.data import decode

PROGRAM = """
import os
import sys
import conic_jax.data
assert 'keras' not in sys.modules
assert 'TF_USE_LEGACY_KERAS' not in os.environ
import tensorflow as tf
print(tf.keras.layers.Dense(3)(tf.zeros((2, 4))).shape)
"""


@pytest.mark.slow
def test_keras_waits_until_it_is_asked_for():
  ended = subprocess.run([sys.executable, '-W', 'ignore', '-c', PROGRAM], capture_output=True, text=True)
  assert (ended.returncode, ended.stdout) == (0, '(2, 3)\n'), ended.stderr


@pytest.mark.parametrize('gpus', [[], ['GPU:0']])
def test_a_tensorflow_that_is_in_use_already_is_left_as_it_is(gpus, monkeypatch, capsys):
  def refuse(devices, kind):
    raise RuntimeError('Visible devices cannot be modified after being initialized')
  monkeypatch.setattr(decode.tf.config, 'set_visible_devices', refuse)
  monkeypatch.setattr(decode.tf.config, 'get_visible_devices', lambda kind: gpus)
  decode.hide_gpus()
  assert ('import conic_jax first' in capsys.readouterr().err) == bool(gpus)
