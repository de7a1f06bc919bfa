"""TensorFlow is imported without Keras, which is there all the same for who wants it."""
import subprocess
import sys

import pytest

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
