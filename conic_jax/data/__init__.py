"""From images on a disk to batches of views. TensorFlow is imported here only."""
import os

# Read once when TensorFlow is imported: without them it greets every command with its build flags.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
