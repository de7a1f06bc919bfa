"""TensorFlow, imported without Keras: the modules of this package get it from here."""
import os

# Importing TensorFlow imports Keras, which is not needed here and takes a third of the time, unless this asks
# for the older Keras, which is not installed. It holds for the import only: tf.keras works as ever.
_OLDER_KERAS = 'TF_USE_LEGACY_KERAS'
_before = os.environ.get(_OLDER_KERAS)
os.environ.setdefault(_OLDER_KERAS, '1')
try:
  import tensorflow as tf
finally:
  if _before is None:
    del os.environ[_OLDER_KERAS]

__all__ = ['tf']
