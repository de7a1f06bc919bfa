"""TensorFlow is imported without what is not needed, which is there all the same for who wants it."""
import subprocess
import sys

import pytest

from conic_jax.data import decode

PROGRAM = """
import os
import sys
before = list(sys.meta_path)
import conic_jax.data
assert sys.meta_path == before
assert not {'keras', 'tensorflow.python.keras', 'tensorflow.python.training.training'} & set(sys.modules)
assert 'TF_USE_LEGACY_KERAS' not in os.environ
import tensorflow as tf
print(tf.keras.layers.Dense(3)(tf.zeros((2, 4))).shape, tf.train.Checkpoint.__name__,
      tf.compat.v1.Session.__name__, tf.nn.relu6(7.).numpy(), tf.distribute.MirroredStrategy.__name__)
"""


@pytest.mark.slow
def test_parts_wait_until_they_are_asked_for():
  ended = subprocess.run([sys.executable, '-W', 'ignore', '-c', PROGRAM], capture_output=True, text=True)
  assert ended.returncode == 0, ended.stderr
  assert ended.stdout == '(2, 3) Checkpoint Session 6.0 MirroredStrategy\n'


@pytest.mark.parametrize('gpus', [[], ['GPU:0']])
def test_a_tensorflow_that_is_in_use_already_is_left_as_it_is(gpus, monkeypatch, capsys):
  def refuse(devices, kind):
    raise RuntimeError('Visible devices cannot be modified after being initialized')
  monkeypatch.setattr(decode.tf.config, 'set_visible_devices', refuse)
  monkeypatch.setattr(decode.tf.config, 'get_visible_devices', lambda kind: gpus)
  decode.hide_gpus()
  assert ('import conic_jax first' in capsys.readouterr().err) == bool(gpus)
