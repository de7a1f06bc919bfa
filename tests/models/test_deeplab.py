"""DeepLabV3 against the same layers in PyTorch."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conic_jax.models import DeepLabV3, ResNet

MODEL = DeepLabV3(ResNet((1, 1), False, 0.125, output_stride=8), num_classes=3, rates=(1, 2, 3), channels=8)
IMAGES = np.random.default_rng(0).normal(size=(4, 36, 44, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
  """Random ones: no scale is 1, no bias and no mean 0."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)
  def draw(path, leaf):
    if leaf.ndim > 1:
      return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
    low, high = (0.5, 1.5) if path[-1].key in ('scale', 'var') else (-0.5, 0.5)
    return rng.uniform(low, high, leaf.shape).astype(np.float32)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def layer(x, variables, name, dilation=1):
  """Convolution, batch norm by the running statistics and ReLU, in PyTorch."""
  for part in name.split('/'):
    variables = {collection: tree[part] for collection, tree in variables.items()}
  params, stats = variables['params'], variables['batch_stats']['norm']
  kernel = torch.tensor(params['conv']['kernel']).permute(3, 2, 0, 1)
  x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2 * dilation, dilation=dilation)
  x = F.batch_norm(x, *(torch.tensor(stats[name]) for name in ('mean', 'var')),
                   *(torch.tensor(params['norm'][name]) for name in ('scale', 'bias')))
  return F.relu(x)


def classify(x, variables, name):
  params = variables['params'][name]
  logits = F.conv2d(x, torch.tensor(params['kernel']).permute(3, 2, 0, 1), torch.tensor(params['bias']))
  logits = F.interpolate(logits, size=IMAGES.shape[1:3], mode='bilinear', align_corners=False)
  return logits.permute(0, 2, 3, 1).numpy()


def test_the_heads_are_those_of_pytorch(variables):
  backbone = {collection: tree['backbone'] for collection, tree in variables.items()}
  maps = jax.jit(lambda v: MODEL.backbone.apply(v, IMAGES, stages=True))(backbone)
  before_last, last = (torch.tensor(np.array(maps[stage])).permute(0, 3, 1, 2)
                       for stage in ('stage1', 'stage2'))
  branches = [layer(last, variables, 'aspp/point')]
  branches += [layer(last, variables, f'aspp/atrous{rate}', rate) for rate in (1, 2, 3)]
  pooled = layer(last.mean((2, 3), keepdim=True), variables, 'aspp/pool')
  branches.append(F.interpolate(pooled, size=last.shape[2:], mode='bilinear', align_corners=False))
  x = layer(layer(torch.cat(branches, 1), variables, 'aspp/project'), variables, 'conv')
  expected = (classify(x, variables, 'classifier'),
              classify(layer(before_last, variables, 'aux_conv'), variables, 'aux_classifier'))

  alone, logits = jax.jit(lambda v: (MODEL.apply(v, IMAGES),
                                     MODEL.apply(v, IMAGES, auxiliary=True)))(variables)
  np.testing.assert_array_equal(alone, logits[0])
  for actual, wanted in zip(logits, expected, strict=True):
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_the_parameters_do_not_depend_on_what_is_asked_for():
  shapes = [jax.eval_shape(lambda both=both: MODEL.init(jax.random.key(0), IMAGES, auxiliary=both))
            for both in (False, True)]
  assert shapes[0] == shapes[1]


def test_a_resnet50_has_the_parameters_of_torchvisions():
  model = DeepLabV3(ResNet((3, 4, 6, 3), True, output_stride=8), num_classes=21)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 65, 65, 3)))
  # The number that torchvision gives for deeplabv3_resnet50 with its auxiliary head.
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == 42_004_074


def test_training_drops_features_and_keeps_masked_images_out(variables):
  @jax.jit
  def train(images, seed):
    return MODEL.apply(variables, images, 'batch', np.array([True, True, True, False]),
                       mutable=['batch_stats'], rngs={'dropout': jax.random.key(seed)})
  logits, state = train(IMAGES, 0)
  assert np.abs(logits - train(IMAGES, 1)[0]).max() > 0.01
  changed = IMAGES.copy()
  changed[3] = 1e3
  other, other_state = train(changed, 0)
  jax.tree.map(np.testing.assert_array_equal, other_state, state)
  np.testing.assert_array_equal(other[:3], logits[:3])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, state['batch_stats'], variables['batch_stats'])
  assert all(jax.tree.leaves(moved))
