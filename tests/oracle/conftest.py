"""What every oracle trains: the tiny network on images of noise, by default without evaluation."""
import plain
import pytest
from support import tiny_method


@pytest.fixture
def oracle_config(tiny_config, tmp_path):
  """Makes the config of a method: 22 images, one of which cannot be decoded, in batches of 8."""
  def make(name, *, images=22, **changes):
    plain.write_images(tmp_path / 'images', images)
    config = tiny_method(tiny_config, name) if name != 'conic' else tiny_config
    config.data.dir = str(tmp_path / 'images')
    config.batch_size, config.epochs, config.dtype = 8, 3, 'float32'
    config.optimizer.name, config.optimizer.schedule, config.optimizer.per_epoch = 'sgd', 'cosine', False
    config.optimizer.learning_rate, config.optimizer.warmup_epochs = 0.03, 1
    config.optimizer.momentum, config.optimizer.weight_decay = 0.9, 1e-2
    config.optimizer.decay_vectors = True
    config.checkpoint.every_epochs, config.checkpoint.keep = 1.0, 3
    config.log_every, config.eval.k, config.eval.knn, config.eval.linear = 1, (3,), False, False
    config.update_from_flattened_dict(changes)
    return config
  return make
