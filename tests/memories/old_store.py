"""Makes a closed store one of version 1: no checksums of rows, files of blocks without states and chains."""
import json
import struct
import zlib

import numpy as np

from conic_jax.memories import journal


def _block(entries):
  payload = entries.tobytes()
  header = struct.pack('<4sII', b'CnJ1', len(entries), zlib.crc32(payload))
  return header + struct.pack('<I', zlib.crc32(header)) + payload


def as_version_1(store):
  """Rewrites the files of a store, whose journals or copies are of at least one block each or empty."""
  crc = [('crc', '<u4')] if store.kind == 'disk' else []
  record = np.dtype([*crc, ('time', '<i8'), ('row', '<f4', (2, store.layout.dim))])
  own_sum = [('sum', '<u4')] if store.kind == 'disk' else []
  new, old = (np.dtype([('place', '<i8'), *sums, ('record', record)]) for sums in (own_sum, []))
  for pattern in ('journal-*', 'host-*'):
    for path in store.folder.glob(pattern):
      blocks = [np.rec.fromarrays([entries['place'], entries['record']], old)
                for entries in journal.read(path, new).blocks]
      path.write_bytes(b''.join(map(_block, blocks)))
  (store.folder / 'rows.sums').unlink(missing_ok=True)
  path = store.folder / 'store.json'
  stated = json.loads(path.read_text())
  del stated['crc32']
  path.write_text(json.dumps({**stated, 'version': 1}))
