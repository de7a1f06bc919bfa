"""The sampled classifier goes on with other numbers of processes and devices, wherever its rows are kept."""
import jax
import numpy as np
import pytest
from sizes_process import is_key, with_every_store
from support import reserved_port
from test_host_rows import DIM, KINDS, SEED, STEPS, N, Trainer, succeed

from conic_jax.memories.store import Layout, open_store


def run_cluster(folder, count, devices, start, stop):
  with reserved_port() as port:
    succeed([['sizes_process.py', index, count, port, folder, start, stop] for index in range(count)],
            devices)


def stored(kind, folder, layout):
  store = open_store(kind, folder, layout, STEPS)
  held = store.read(np.array(layout.ids))
  store.close()
  return held


@pytest.mark.slow
def test_other_numbers_of_processes_and_devices_go_on(mesh8, tmp_path):
  """One process with 8 devices, two with 4, four with 8; the rows are those of an undisturbed run."""
  with_every_store(tmp_path, 0, 8)
  run_cluster(tmp_path, count=2, devices=2, start=8, stop=15)
  run_cluster(tmp_path, count=4, devices=2, start=15, stop=STEPS)
  for kind in KINDS:
    whole = Trainer(tmp_path / 'whole' / kind, mesh8, kind).start()
    while whole.steps_done < STEPS:
      whole.advance()
    expected = [leaf for leaf in jax.tree.leaves(whole.save()) if not is_key(leaf)]
    whole.host.close()
    for name in ('shared', 'own'):
      with np.load(tmp_path / kind / f'{name}.npz') as held:
        for number, leaf in enumerate(expected):
          np.testing.assert_allclose(held[f'arr_{number}'], leaf, rtol=1e-4, atol=1e-6)
    if kind != 'device':
      rows, seen, written = stored(kind, tmp_path / 'whole' / kind, Layout(N, DIM, SEED))
      for folder, begun in (('shared', 15), ('own-{}', None)):
        parts = [stored(kind, tmp_path / kind / folder.format(index), Layout(N, DIM, SEED, index, 4, begun))
                 for index in range(4)]
        np.testing.assert_allclose(np.concatenate([part.rows for part in parts]), rows, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(np.concatenate([part.seen for part in parts]), seen)
        np.testing.assert_array_equal(np.concatenate([part.written for part in parts]), written)
