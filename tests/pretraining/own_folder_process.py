"""The command, with a store in a folder of the process's own and copies in a bucket: FOLDER BUCKET FLAG …."""
import sys
from pathlib import Path

from etils import epath

from conic_jax import main
from conic_jax.memories.host import HostSettings
from conic_jax.pretraining import training

if __name__ == '__main__':
  own = {'folder': Path(sys.argv.pop(1)), 'remote': epath.Path(sys.argv.pop(1))}
  training.HostSettings = lambda **given: HostSettings(**given | own)
  main.command()
