"""The last losses of runs that began on fewer devices, on 16: FOLDER CASE …, as JSON."""
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from method_programs import NUM_IMAGES, STEPS, Program, config_of_case, take_steps

from conic_jax.hardware import mesh as meshes


def main():
  folder, found = Path(sys.argv[1]), {}
  for case in sys.argv[2:]:
    config = config_of_case('no images', folder, case)
    program = Program(config, meshes.make_mesh(devices=jax.devices()[:16]), jnp.dtype('float32'))
    found[case] = take_steps(program, folder / case / 'changed', STEPS)
  print(json.dumps(found))


if __name__ == '__main__':
  assert NUM_IMAGES % 16  # Rows are padded.
  main()
