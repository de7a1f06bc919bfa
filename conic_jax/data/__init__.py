"""From images on disk to batches of views. Only this package imports TensorFlow."""
import os

# TensorFlow reads these on import; without them every command starts by printing its build flags.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

# Importing TensorFlow imports Keras, which is not needed here and takes a third of the time, unless this asks
# for the older Keras, which is not installed. It holds for the import only: tf.keras works as ever.
_OLDER_KERAS = 'TF_USE_LEGACY_KERAS'
if _OLDER_KERAS not in os.environ:
  os.environ[_OLDER_KERAS] = '1'
  try:
    import tensorflow  # noqa: F401
  finally:
    del os.environ[_OLDER_KERAS]
