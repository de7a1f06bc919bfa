"""One of the two processes of `test_host_rows.test_two_processes_keep_a_part_each`."""
import sys
from pathlib import Path

import jax

if __name__ == '__main__':
  _, index, port, folder = sys.argv
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(index))
  import test_host_rows  # After this: it makes arrays.

  from conic_jax.hardware import mesh as meshes
  for kind in ('device', 'disk'):
    test_host_rows.check_against_dense(Path(folder) / kind, meshes.make_mesh(), kind)
  test_host_rows.check_what_one_cannot_copy(Path(folder), meshes.make_mesh())
