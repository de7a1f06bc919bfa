"""The names of layers, by hand, and the layout of arrays."""
import numpy as np
import pytest
from encoders import draw_variables, network_of

from conic_jax.export import names


@pytest.mark.parametrize(('path', 'torchvision', 'transformers', 'detectron2'), [
    ('stem/conv', 'conv1', 'embedder.embedder.convolution', 'stem.conv1'),
    ('stem/norm', 'bn1', 'embedder.embedder.normalization', 'stem.conv1.norm'),
    ('stage1/block0/conv1', 'layer1.0.conv1', 'encoder.stages.0.layers.0.layer.0.convolution',
     'res2.0.conv1'),
    ('stage3/block22/norm3', 'layer3.22.bn3', 'encoder.stages.2.layers.22.layer.2.normalization',
     'res4.22.conv3.norm'),
    ('stage4/block0/shortcut', 'layer4.0.downsample.0', 'encoder.stages.3.layers.0.shortcut.convolution',
     'res5.0.shortcut'),
    ('stage4/block0/shortcut_norm', 'layer4.0.downsample.1',
     'encoder.stages.3.layers.0.shortcut.normalization', 'res5.0.shortcut.norm')])
def test_a_layer_by_its_names(path, torchvision, transformers, detectron2):
  layer = names.layer(path)
  assert names.torchvision(layer) == torchvision
  assert names.transformers(layer) == transformers
  assert names.detectron2(layer) == detectron2


def test_what_is_no_layer():
  with pytest.raises(ValueError, match='head/dense is no layer'):
    names.layer('head/dense')


@pytest.mark.parametrize('name', [names.torchvision, names.transformers, names.detectron2])
def test_every_array_has_a_name_of_its_own_and_pytorchs_layout(name):
  network = network_of('resnet50', blocks=(2, 1), width=0.125)
  variables = draw_variables(network)
  arrays = names.named(variables, name)
  # 1 + 3 · 3 + 2 convolutions, each with its norm's four arrays.
  assert len(arrays) == 5 * 12
  stem = names.layer('stem/conv')
  kernel = variables['params']['stem']['conv']['kernel']
  actual = arrays[f'{name(stem)}.weight']
  assert actual.flags.c_contiguous
  assert actual[5, 2, 1, 6] == kernel[1, 6, 2, 5]
  norm = name(names.layer('stage2/block0/norm2'))
  params, stats = (variables[part]['stage2']['block0']['norm2'] for part in ('params', 'batch_stats'))
  for field, expected in (('weight', params['scale']), ('bias', params['bias']),
                          ('running_mean', stats['mean']), ('running_var', stats['var'])):
    np.testing.assert_array_equal(arrays[f'{norm}.{field}'], expected)
