"""From images on disk to batches of views. Only this package imports TensorFlow."""
import os

# TensorFlow reads these on import; without them every command starts by printing its build flags.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
