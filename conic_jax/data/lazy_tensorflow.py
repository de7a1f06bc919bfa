"""TensorFlow, imported without what is not needed here: the modules of this package get it from here.

Importing all of TensorFlow takes as long as importing the rest of the library twice. Keras and the parts of
TensorFlow's interface are imported when they are first used, wherever that is: `tf.keras` works as ever.
"""
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

_PARTS = 'tensorflow._api.v2.'
# TensorFlow imports Keras with itself, unless this asks for the older Keras, which is not installed.
_OLDER_KERAS = 'TF_USE_LEGACY_KERAS'


class _Lazily(MetaPathFinder):
  """Finds the parts of TensorFlow's interface, which run when something of them is first used."""

  def find_spec(self, fullname, path=None, target=None):
    """The spec of a part, and none for other modules."""
    spec = PathFinder.find_spec(fullname, path, target) if fullname.startswith(_PARTS) else None
    if spec and spec.loader:
      spec.loader = importlib.util.LazyLoader(spec.loader)
    return spec


@contextlib.contextmanager
def _only_what_is_used() -> Iterator[None]:
  """Holds for an import in it alone."""
  before, finder = os.environ.get(_OLDER_KERAS), _Lazily()
  os.environ.setdefault(_OLDER_KERAS, '1')
  sys.meta_path.insert(0, finder)
  try:
    yield
  finally:
    sys.meta_path.remove(finder)
    if before is None:
      del os.environ[_OLDER_KERAS]


with _only_what_is_used():
  import tensorflow as tf
  from tensorflow.core.framework.summary_pb2 import Summary, SummaryMetadata
  from tensorflow.core.util.event_pb2 import Event, SessionLog

# Threads use these, and in Python 3.11 two threads must not be the first at the same time.
for _part in (tf.autograph.experimental, tf.config, tf.data, tf.errors, tf.image, tf.io.gfile, tf.nest,
              tf.raw_ops, tf.strings):
  dir(_part)

__all__ = ['Event', 'SessionLog', 'Summary', 'SummaryMetadata', 'tf']
