"""The folder for Transformers and model hubs: it gives the features of `embed`, and hubs read its card."""
import re
import sys
import warnings

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from encoders import write_run
from PIL import Image
from support import tiny

from conic_jax import embed
from conic_jax.export import __main__ as main

SUMMARY = {'step': 6, 'knn_top1': 0.8125, 'knn_top1_k3': 0.8125, 'random_init': {'knn_top1': 0.2}}
# Real photographs at several sizes, wide, tall and square, larger and smaller than the input.
PHOTOS = {'astronaut': (341, 256), 'chelsea': (451, 300), 'coffee': (256, 383), 'rocket': (97, 64),
          'cat': (120, 257)}


def difference(found, expected):
  """Relative to the norm."""
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
  """A folder of JPEGs."""
  root = tmp_path_factory.mktemp('photographs')
  for name, size in PHOTOS.items():
    Image.fromarray(getattr(skimage.data, name)()).resize(size).save(root / f'{name}.jpg', quality=92)
  return root


@pytest.fixture(params=[(96, 0), (64, 64)], ids=['96 of 110', '64 of 64'], scope='module')
def exported(request, tmp_path_factory):
  """A run with random weights and the folder that it is exported to."""
  root = tmp_path_factory.mktemp('exported')
  config = tiny(root, root / 'run')
  config.encoder.stem, config.encoder.blocks, config.encoder.width = 'imagenet', (2, 1), 0.5
  config.views.size, config.eval.resize = request.param
  config.views.mean, config.views.std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
  write_run(config, root / 'run', SUMMARY)
  main.export(root / 'run', 'transformers', root / 'hub')
  return root / 'run', root / 'hub'


@pytest.fixture
def embedded(exported, photographs, tmp_path, monkeypatch):
  """The features of `embed`, by file name."""
  monkeypatch.setattr(sys, 'argv', ['embed', str(exported[0]), str(photographs), f'--out={tmp_path}/e.npz'])
  embed.command()
  with np.load(tmp_path / 'e.npz') as arrays:
    return dict(zip(arrays['paths'].tolist(), arrays['vectors'], strict=True))


@pytest.mark.slow
def test_the_folder_alone_gives_the_features_of_embed(exported, photographs, embedded):
  from transformers import AutoImageProcessor, AutoModel, pipeline
  folder = str(exported[1])
  processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
  assert sorted(embedded) == sorted(f'{name}.jpg' for name in PHOTOS)
  for name, expected in embedded.items():
    with Image.open(photographs / name) as image, torch.no_grad():
      features = model(**processor(image, return_tensors='pt')).pooler_output.flatten().numpy()
    assert difference(features, expected) <= 1e-3, name
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    piped = pipeline('image-feature-extraction', model=folder, framework='pt', pool=True)(
      str(photographs / 'coffee.jpg'))
  assert difference(np.ravel(piped), embedded['coffee.jpg']) <= 1e-3


@pytest.mark.slow
def test_the_cards_example_runs(exported, photographs, embedded, tmp_path, monkeypatch):
  code = re.search(r'```python\n(.*?)```', (exported[1] / 'README.md').read_text(), re.DOTALL)[1]
  (tmp_path / 'image.jpg').write_bytes((photographs / 'chelsea.jpg').read_bytes())
  (tmp_path / 'hub').symlink_to(exported[1])
  monkeypatch.chdir(tmp_path)
  found = {}
  exec(code, found)
  assert difference(found['features'][0].numpy(), embedded['chelsea.jpg']) <= 1e-3


def test_hubs_read_the_card(exported):
  from huggingface_hub import ModelCard
  path = exported[1] / 'README.md'
  card = ModelCard.load(path)
  assert card.data.library_name == 'transformers'
  assert card.data.pipeline_tag == 'image-feature-extraction'
  assert {'image-feature-extraction', 'self-supervised'} == set(card.data.tags)
  assert card.data.license == 'unknown'
  result, = card.data.eval_results
  assert (result.metric_type, result.metric_name, result.metric_value) == ('accuracy', 'knn_top1', 0.8125)
  assert result.dataset_type == 'image-folder'
  header = yaml.safe_load(path.read_text().split('---')[1])
  assert header['model-index'][0]['name'].endswith('pretrained with conic')
