"""Every method trains a vision transformer or a ConvNeXt, split over eight devices."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_programs import Program, Setting, config_of_case, without_colours

from conic_jax import methods

pytestmark = pytest.mark.slow

ENCODERS = {'vit': {'name': 'vit_tiny', 'width': 1 / 12, 'patch': 4},
            'convnext': {'name': 'convnext_tiny', 'width': 1 / 12, 'patch': 1}}


@pytest.mark.parametrize('name', methods.available())
def test_two_steps(name, image_folder, mesh8, tmp_path):
  """Half of the methods with each network; what all share is learned by AdamW."""
  config = without_colours(config_of_case(image_folder, tmp_path / 'run', name))
  encoder = 'vit' if methods.available().index(name) % 2 else 'convnext'
  blocks = (1, 1, 1, 1) if name == 'inscon' else (1,)  # Its cells are on the map of the fourth stage.
  config.encoder.update({'output_stride': 32, 'blocks': blocks, **ENCODERS[encoder]})
  if name == 'data_parallel':
    config.classifier.update(momentum=config.optimizer.momentum)
  config.optimizer.update(name='adamw')
  setting = Setting(Program(config, mesh8, jnp.dtype(jnp.float32)), tmp_path / 'store')
  before = jax.tree.map(np.asarray, setting.state.params['encoder'])
  losses = [float(setting.take(step)['loss']) for step in range(2)]
  assert np.isfinite(losses).all()
  changed = jax.tree.map(lambda a, b: bool(np.abs(np.asarray(a) - b).max() > 0),
                         setting.state.params['encoder'], before)
  assert all(jax.tree.leaves(changed)), changed
  for host in setting.hosts.values():
    host.close()
