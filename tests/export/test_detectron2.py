"""Detectron2's configs, and, where it is installed, that it computes what our encoders compute."""
import argparse
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from encoders import difference, draw_variables, network_of
from flax.traverse_util import flatten_dict
from PIL import Image

from conic_jax.export import targets
from conic_jax.views import IMAGENET_MEAN, IMAGENET_STD

FOLDER = Path(__file__).parents[2] / 'experiments' / 'detectron2'
VOC, COCO = [['voc_2007_test']], [['coco_2017_train'], ['coco_2017_val']]
# Training sets, evaluated sets, batch, learning rate, iterations, steps.
TABLE = {
  'voc_c4_24k': (['voc_2007_trainval', 'voc_2012_trainval'], *VOC, 16, 0.02, 24_000, [18_000, 22_000]),
  'voc_c4_9k': (['voc_2007_train'], *VOC, 16, 0.02, 9_000, [6_000, 8_000]),
  'coco_c4_1x': (*COCO, 16, 0.02, 90_000, [60_000, 80_000]),
  'coco_c4_2x': (*COCO, 16, 0.02, 180_000, [120_000, 160_000]),
  'coco_fpn_1x': (*COCO, 16, 0.02, 90_000, [60_000, 80_000]),
  'coco_fpn_2x': (*COCO, 16, 0.02, 180_000, [120_000, 160_000]),
  'keypoints_fpn_2x': (['keypoints_coco_2017_train'], ['keypoints_coco_2017_val'],
                       16, 0.02, 180_000, [120_000, 160_000]),
  'cityscapes_fpn_24k': (['cityscapes_fine_instance_seg_train'], ['cityscapes_fine_instance_seg_val'],
                         8, 0.01, 24_000, [18_000]),
  'lvis_fpn_2x': (['lvis_v0.5_train'], ['lvis_v0.5_val'], 16, 0.02, 180_000, [120_000, 160_000]),
  'densepose_fpn_s1x': (['densepose_coco_2014_train', 'densepose_coco_2014_valminusminival'],
                        ['densepose_coco_2014_minival'], 16, 0.01, 130_000, [100_000, 120_000]),
}
# What Detectron2 and PyTorch warn of in their own calls.
lenient = pytest.mark.filterwarnings('ignore')


def settings(path):
  """A config by dotted names, over the file that it builds upon."""
  content = flatten_dict(yaml.safe_load(path.read_text()), sep='.')
  base = content.pop('_BASE_', None)
  return {**settings(path.parent / base), **content} if base else content


@pytest.fixture(scope='module')
def train():
  """train.py as a module."""
  pytest.importorskip('detectron2', reason='Detectron2 is not installed')
  spec = importlib.util.spec_from_file_location('train', FOLDER / 'train.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def build(train, name, options=()):
  """A detector on CPU, as a config describes it, for evaluation."""
  from detectron2.modeling import build_model
  config = train.read_config(argparse.Namespace(
    config_file=str(FOLDER / f'{name}.yaml'), opts=['MODEL.DEVICE', 'cpu', *options]))
  return build_model(config).eval()


def test_every_config_is_in_the_table_and_the_readme():
  configs = {path.stem for path in FOLDER.glob('*.yaml') if not path.stem.startswith('base')}
  assert configs == TABLE.keys()
  readme = (FOLDER / 'README.md').read_text()
  commands = re.findall(r'^python .*--config-file=experiments/detectron2/(\w+)\.yaml OUTPUT_DIR runs/(\w+)$',
                        readme, re.MULTILINE)
  assert commands == [(name, name) for name in TABLE]
  assert re.findall(r'^\| `(\w+)` \|', readme, re.MULTILINE) == list(TABLE)


@pytest.mark.parametrize('name', TABLE)
def test_a_config_is_the_papers(name):
  config = settings(FOLDER / f'{name}.yaml')
  actual = [config[key] for key in (
    'DATASETS.TRAIN', 'DATASETS.TEST', 'SOLVER.IMS_PER_BATCH', 'SOLVER.BASE_LR', 'SOLVER.MAX_ITER',
    'SOLVER.STEPS')]
  assert actual == list(TABLE[name])
  assert re.match(r'# .*(ConIC, appendix C\.1|table \d)', (FOLDER / f'{name}.yaml').read_text())
  # The encoder's own images and strides; all of it is trained, batch norm too.
  np.testing.assert_allclose(config['MODEL.PIXEL_MEAN'], 255 * np.array(IMAGENET_MEAN), rtol=1e-6)
  np.testing.assert_allclose(config['MODEL.PIXEL_STD'], 255 * np.array(IMAGENET_STD), rtol=1e-6)
  assert config['INPUT.FORMAT'] == 'RGB'
  assert not config['MODEL.RESNETS.STRIDE_IN_1X1']
  assert config['MODEL.BACKBONE.FREEZE_AT'] == 0
  norms = {key for key, value in config.items() if value == 'SyncBN'}
  parts = ['RESNETS', 'FPN', 'ROI_BOX_HEAD', 'ROI_MASK_HEAD'] if '_fpn_' in name else ['RESNETS']
  assert norms == {f'MODEL.{part}.NORM' for part in parts}


def test_train_says_what_it_lacks():
  if importlib.util.find_spec('detectron2'):
    pytest.skip('Detectron2 is installed')
  done = subprocess.run([sys.executable, str(FOLDER / 'train.py')], capture_output=True, text=True)
  assert done.returncode == 1
  assert re.fullmatch(r'train\.py: detectron2 is not installed: .*\n', done.stderr)


@lenient
@pytest.mark.parametrize('name', [name for name in TABLE if name != 'densepose_fpn_s1x'])
def test_detectron2_builds_the_detector(name, train):
  from torch import nn
  model = build(train, name)
  assert all(parameter.requires_grad for parameter in model.parameters())
  if '_c4_' in name:
    assert isinstance(model.roi_heads.res5.norm, nn.SyncBatchNorm)
  for dataset in TABLE[name][1]:
    assert train.MetadataCatalog.get(dataset).evaluator_type in train.EVALUATORS


@lenient
def test_densepose_builds_the_detector():
  pytest.importorskip('detectron2', reason='Detectron2 is not installed')
  densepose = pytest.importorskip('densepose', reason="Detectron2's project DensePose is not installed")
  from detectron2.config import get_cfg
  from detectron2.modeling import build_model
  config = get_cfg()
  densepose.add_densepose_config(config)
  config.merge_from_file(str(FOLDER / 'densepose_fpn_s1x.yaml'))
  config.MODEL.DEVICE = 'cpu'
  assert isinstance(build_model(config).roi_heads, densepose.modeling.roi_heads.DensePoseROIHeads)


@lenient
@pytest.mark.parametrize(('name', 'config', 'options'), [
    ('resnet50', 'voc_c4_24k', []), ('resnet50', 'coco_fpn_1x', []),
    ('resnet18', 'coco_fpn_1x', ['MODEL.RESNETS.DEPTH', 18, 'MODEL.RESNETS.RES2_OUT_CHANNELS', 64])])
def test_detectron2_takes_every_array_and_computes_the_same_maps(name, config, options, train, tmp_path):
  import torch
  from detectron2.checkpoint import DetectionCheckpointer
  network = network_of(name)
  variables = draw_variables(network)
  targets.write('detectron2', network, variables, 'card', tmp_path / 'x.pkl')
  model = build(train, config, options)
  DetectionCheckpointer(model).load(str(tmp_path / 'x.pkl'))

  arrays = pickle.loads((tmp_path / 'x.pkl').read_bytes())['model']
  loaded = {key: value for key, value in model.state_dict().items()
            if re.match(r'backbone\.(bottom_up\.)?(stem|res)|roi_heads\.res5\.\d', key)
            and not key.endswith('num_batches_tracked')}
  named = {re.sub(r'^backbone\.(bottom_up\.)?|^roi_heads\.', '', key): value for key, value in loaded.items()}
  assert len(named) == len(loaded)
  assert named.keys() == arrays.keys()
  for key, value in named.items():
    np.testing.assert_array_equal(value, arrays[key])

  image = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
  with torch.no_grad():
    inputs = model.preprocess_image([{'image': torch.tensor(image.transpose(2, 0, 1))}]).tensor
    maps = getattr(model.backbone, 'bottom_up', model.backbone)(inputs)
    if config == 'voc_c4_24k':
      maps['res5'] = model.roi_heads.res5[:-1](maps['res4'])  # Without the norm after it.
  normalised = ((image / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)
  expected = jax.jit(lambda images: network.apply(variables, images, stages=True))(normalised[None])
  for key, value in maps.items():
    assert difference(value.permute(0, 2, 3, 1), expected[f'stage{int(key[-1]) - 1}']) <= 1e-4


def draw_voc(root, count=2):
  """A VOC2007 of noise with a dog in each image, the same for training and test."""
  for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
    (root / 'VOC2007' / folder).mkdir(parents=True)
  for i in range(count):
    pixels = np.random.default_rng(i).integers(0, 256, (80, 96, 3), np.uint8)
    Image.fromarray(pixels).save(root / f'VOC2007/JPEGImages/{i}.jpg')
    (root / f'VOC2007/Annotations/{i}.xml').write_text(
      '<annotation><size><width>96</width><height>80</height></size><object><name>dog</name>'
      '<pose>Left</pose><truncated>0</truncated><difficult>0</difficult><bndbox><xmin>9</xmin><ymin>9</ymin>'
      '<xmax>60</xmax><ymax>60</ymax></bndbox></object></annotation>')
  for split in ('train', 'test'):
    (root / f'VOC2007/ImageSets/Main/{split}.txt').write_text('\n'.join(map(str, range(count))))


def draw_coco(root, images, annotations, categories, count=2):
  """Images of noise with a square of the first category in each, in COCO's format; LVIS's is as that.

  Args:
    root, images: the folder of all data sets, and that of the images.
    annotations: the file of annotations.
    categories: their names by number.
    count: the images.
  """
  (root / 'coco' / images).mkdir(parents=True, exist_ok=True)
  for i in range(count):
    pixels = np.random.default_rng(i).integers(0, 256, (80, 96, 3), np.uint8)
    Image.fromarray(pixels).save(root / 'coco' / images / f'{i:012d}.jpg')
  square = [[9.0, 9.0, 60.0, 9.0, 60.0, 60.0, 9.0, 60.0]]
  content = {
    'images': [{'id': i, 'file_name': f'{i:012d}.jpg', 'height': 80, 'width': 96, 'neg_category_ids': [],
                'not_exhaustive_category_ids': [], 'coco_url': f'http://host/{images}/{i:012d}.jpg'}
               for i in range(count)],
    'annotations': [{'id': i + 1, 'image_id': i, 'category_id': next(iter(categories)), 'area': 2601,
                     'bbox': [9, 9, 51, 51], 'iscrowd': 0, 'segmentation': square} for i in range(count)],
    'categories': [{'id': id, 'name': name, 'synset': f'{name}.n.01', 'frequency': 'f', 'image_count': count,
                    'instance_count': count} for id, name in categories.items()]}
  annotations.parent.mkdir(parents=True, exist_ok=True)
  annotations.write_text(json.dumps(content))


def draw_cityscapes(root):
  """Images of noise with a car in each, as Cityscapes has them."""
  for split in ('train', 'val'):
    images, truth = (root / 'cityscapes' / part / split / 'town' for part in ('leftImg8bit', 'gtFine'))
    images.mkdir(parents=True)
    truth.mkdir(parents=True)
    for i in range(2):
      name, pixels = f'town_{i:06d}_000019', np.random.default_rng(i).integers(0, 256, (80, 96, 3), np.uint8)
      Image.fromarray(pixels).save(images / f'{name}_leftImg8bit.png')
      ids = np.full((80, 96), 7, np.uint16)
      ids[9:60, 9:60] = 26_000  # The first car.
      Image.fromarray(ids).save(truth / f'{name}_gtFine_instanceIds.png')
      labels = np.where(ids > 255, 26, ids).astype(np.uint8)
      Image.fromarray(labels).save(truth / f'{name}_gtFine_labelIds.png')
      polygon = [[9, 9], [60, 9], [60, 60], [9, 60]]
      (truth / f'{name}_gtFine_polygons.json').write_text(json.dumps({
        'imgHeight': 80, 'imgWidth': 96, 'objects': [{'label': 'car', 'polygon': polygon}]}))


def draw_lvis(root):
  """LVIS's two splits, with the categories that Detectron2 knows of it."""
  from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES
  names = {category['id']: category['name'] for category in LVIS_CATEGORIES}
  for split in ('train', 'val'):
    draw_coco(root, f'{split}2017', root / 'lvis' / f'lvis_v0.5_{split}.json', names)


def draw_coco_2017(root):
  """COCO's two splits, with its eighty categories."""
  from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
  names = {category['id']: category['name'] for category in COCO_CATEGORIES if category['isthing']}
  for split in ('train', 'val'):
    draw_coco(root, f'{split}2017', root / 'coco' / 'annotations' / f'instances_{split}2017.json', names)


QUICK = {
  'MODEL.DEVICE': 'cpu', 'SOLVER.IMS_PER_BATCH': 2, 'SOLVER.MAX_ITER': 2, 'SOLVER.STEPS': '(1,)',
  'SOLVER.WARMUP_ITERS': 0, 'INPUT.MIN_SIZE_TRAIN': '(96,)', 'INPUT.MIN_SIZE_TEST': 96,
  'TEST.PRECISE_BN.NUM_ITER': 1, 'DATALOADER.NUM_WORKERS': 0, 'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': 8,
  'MODEL.RPN.POST_NMS_TOPK_TEST': 8, 'OUTPUT_DIR': 'run'}


def run_train(name, folder, *arguments, **options):
  """Runs train.py with a config for two iterations in a folder."""
  return subprocess.run(
    [sys.executable, str(FOLDER / 'train.py'), f'--config-file={FOLDER}/{name}.yaml', *arguments,
     *(str(word) for option in {**QUICK, **options}.items() for word in option)], cwd=folder,
    env={**os.environ, 'DETECTRON2_DATASETS': str(folder)}, capture_output=True, text=True)


@lenient
@pytest.mark.parametrize(('name', 'draw', 'packages', 'printed'), [
  ('coco_fpn_1x', draw_coco_2017, ('pycocotools',), 'copypaste: AP,AP50,AP75,APs,APm,APl'),
  ('lvis_fpn_2x', draw_lvis, ('lvis',), 'copypaste: AP,AP50,AP75,APs,APm,APl,APr,APc,APf'),
  ('cityscapes_fpn_24k', draw_cityscapes, ('cityscapesscripts', 'shapely'), 'copypaste: AP,AP50')])
def test_train_evaluates_by_the_protocol_of_the_data(name, draw, packages, printed, tmp_path):
  for package in ('detectron2', *packages):
    pytest.importorskip(package, reason=f'{package} is not installed')
  draw(tmp_path)
  # Scores of an untrained detector are low: all of them count, so that something is evaluated.
  done = run_train(name, tmp_path, **{'MODEL.WEIGHTS': '', 'MODEL.ROI_HEADS.SCORE_THRESH_TEST': 0.0})
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
  assert printed in done.stdout
  assert 'copypaste: Task: segm' in done.stdout


@lenient
def test_a_missing_encoder_and_a_missing_package_are_told_before_the_training(train, tmp_path, monkeypatch):
  done = run_train('coco_fpn_1x', tmp_path)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith(
    "train.py: there is no encoder 'encoder.pkl' here: write one with python -m conic_jax.export")
  config = train.read_config(argparse.Namespace(
    config_file=str(FOLDER / 'cityscapes_fpn_24k.yaml'), opts=['MODEL.WEIGHTS', '']))
  monkeypatch.setattr(train.importlib.util, 'find_spec', lambda name: None if name == 'shapely' else True)
  with pytest.raises(SystemExit, match='not installed: pip install shapely'):
    train.check(config)


@lenient
def test_train_fine_tunes_every_layer_and_evaluates(tmp_path):
  pytest.importorskip('detectron2', reason='Detectron2 is not installed')
  import torch
  draw_voc(tmp_path)
  network = network_of('resnet50')
  targets.write('detectron2', network, draw_variables(network), 'card', tmp_path / 'encoder.pkl')
  done = run_train('voc_c4_9k', tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'copypaste: AP,AP50,AP75' in done.stdout
  before = pickle.loads((tmp_path / 'encoder.pkl').read_bytes())['model']
  after = torch.load(tmp_path / 'run/model_final.pth', weights_only=False)['model']
  for name, array in before.items():
    key = f'roi_heads.{name}' if name.startswith('res5') else f'backbone.{name}'
    assert (after[key].numpy() != array).any(), name
  assert after['roi_heads.res5.norm.running_mean'].any()
