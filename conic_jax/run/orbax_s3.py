"""Checkpoints in S3: Orbax writes to any file system, but knows of buckets only Google's."""
import os
from typing import Any

_URL = 's3://'


def teach_orbax() -> None:
  """Lets Orbax open s3:// paths by TensorStore's driver for S3, as it opens gs:// paths by that for GCS.

  The endpoint of a service other than Amazon's is AWS_ENDPOINT_URL, as for Amazon's own tools.
  """
  from orbax.checkpoint._src.path import gcs_utils
  from orbax.checkpoint._src.serialization import tensorstore_utils
  if gcs_utils.get_kvstore_for_gcs.__module__ == __name__:
    return
  of_gcs, is_gcs, normal = (gcs_utils.get_kvstore_for_gcs, tensorstore_utils._use_gcs_driver,
                            tensorstore_utils._normalize_path)

  def store(path: str) -> dict[str, Any]:
    return kvstore(path) if path.startswith(_URL) else of_gcs(path)

  gcs_utils.get_kvstore_for_gcs = store
  tensorstore_utils._use_gcs_driver = lambda path: path.startswith(_URL) or is_gcs(path)
  tensorstore_utils._normalize_path = lambda path: (
    _URL + os.path.normpath(path.removeprefix(_URL)) if path.startswith(_URL) else normal(path))


def kvstore(path: str) -> dict[str, Any]:
  """TensorStore's specification of a path in S3."""
  bucket, _, key = path.removeprefix(_URL).partition('/')
  specification: dict[str, Any] = {'driver': 's3', 'bucket': bucket, 'path': key}
  if 'AWS_ACCESS_KEY_ID' in os.environ:
    specification['aws_credentials'] = {'type': 'environment'}
  if endpoint := os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL'):
    specification['endpoint'] = endpoint
  if region := os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION'):
    specification['aws_region'] = region
  return specification
