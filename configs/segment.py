"""Semantic segmentation with DeepLabV3 on the dilated encoder (ConIC, Appendix C).

  python -m conic_jax.main --config=configs/segment.py:cityscapes --config.encoder=runs/conic
  python -m conic_jax.main --config=configs/segment.py:camvid --config.encoder=runs/photos \\
    --config.data.dir=camvid

Presets: cityscapes, coco_stuff, ade20k, voc, pascal_context with the paper's settings; camvid, small enough
for a CPU; folder, for your own images. Cityscapes and ADE20k (scene_parse150) come from TFDS; the others are
folders, where an image in SPLIT/images and its mask in SPLIT/masks have the same name. Masks are 8-bit PNGs,
grey or with a palette, whose values are ids.

The paper gives the iterations, batch size, learning rate, crop size, loss weights and a "lambda poly"
schedule. The rest is ours: momentum, weight decay, power and the short side are those of openseg.pytorch, the
source of that name; scales of 0.5 to 2 and mirroring are common, as are the rates 12, 24, 36 at output stride
8; a test image that fits on the canvas keeps its size.

The result is printed and written to segment_PRESET.json in config.run, by default the encoder's run or
runs/evaluated_NAME, with a figure of some predictions. The network is saved next to it, in segment_PRESET/, a
run that every command accepts. Repeat the command to resume a stopped run.
"""
from ml_collections import ConfigDict

from configs import common

PRESETS = ('cityscapes', 'coco_stuff', 'ade20k', 'voc', 'pascal_context', 'camvid', 'folder')
CAMVID = ('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian',
          'cyclist')
CITYSCAPES = {
  7: 'road', 8: 'sidewalk', 11: 'building', 12: 'wall', 13: 'fence', 17: 'pole', 19: 'traffic light',
  20: 'traffic sign', 21: 'vegetation', 22: 'terrain', 23: 'sky', 24: 'person', 25: 'rider', 26: 'car',
  27: 'truck', 28: 'bus', 31: 'train', 32: 'motorcycle', 33: 'bicycle'}
# Numbers in COCO's list of 182 that no pixel has. Masks hold the number minus 1.
COCO_STUFF_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
VOC = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
       'dining table', 'dog', 'horse', 'motorbike', 'person', 'potted plant', 'sheep', 'sofa', 'train',
       'tv monitor')


def get_config(preset: str = 'folder') -> ConfigDict:
  """The settings for a data set."""
  common.check('segment', PRESETS, preset)
  config = common.evaluation('segment', f'segment_{preset}')
  config.data.update(name='folder', train='train', test='val')
  config.eval = common.group({
    'batch_size': 8,              # images tested at a time
  })
  config.segmentation = settings = common.group({
    'num_classes': 2,             # C
    'classes': (),                # their names
    'ids': (),                    # the id of each class in the masks; () for 0, 1, 2 …
    'ignore': (255,),             # ids that are neither learned nor counted
    'iterations': 30_000,         # steps
    'batch_size': 16,             # images per step
    'learning_rate': 0.01,        # of all layers, at the first step
    'momentum': 0.9,              # of SGD
    'weight_decay': 1e-4,         # of all layers
    'power': 0.9,                 # the rate falls as (1 − i / iterations)^power
    'crop': (520, 520),           # height and width
    'scale': (0.5, 2.0),          # smallest and largest factor on a training image
    'short_side': 520,            # short side before scaling and in testing; 0 keeps the image's own
    'test_size': (704, 704),      # canvas that a test image must fit on
    'rates': (12, 24, 36),        # dilation of each atrous convolution
    'channels': 256,              # of the head
    'auxiliary_weight': 0.4,      # of the auxiliary loss; the main one has weight 1
    'report_every': 50,           # iterations
  })

  if preset == 'cityscapes':
    config.data.update(name='cityscapes/semantic_segmentation', test='validation')
    settings.update(num_classes=19, classes=tuple(CITYSCAPES.values()), ids=tuple(CITYSCAPES))
    settings.ignore = (*(id for id in range(34) if id not in CITYSCAPES), 255)
    settings.update(iterations=40_000, batch_size=8, crop=(512, 1024), weight_decay=5e-4)
    settings.update(short_side=0, test_size=(1024, 2048))
  elif preset == 'coco_stuff':
    ids = tuple(number - 1 for number in range(1, 183) if number not in COCO_STUFF_UNUSED)
    settings.update(num_classes=171, ids=ids, iterations=60_000)
  elif preset == 'ade20k':
    config.data.update(name='scene_parse150', test='test')
    settings.update(num_classes=150, ids=tuple(range(1, 151)), ignore=(0,), iterations=150_000,
                    learning_rate=0.02)
  elif preset == 'voc':
    settings.update(num_classes=21, classes=VOC, iterations=60_000, learning_rate=0.001, crop=(513, 513))
    settings.update(short_side=513, test_size=(688, 688))
  elif preset == 'pascal_context':
    settings.update(num_classes=59, ids=tuple(range(1, 60)), ignore=(0, 255), learning_rate=0.001)
  elif preset == 'camvid':
    config.data.test = 'test'
    config.network.update(name='resnet18', blocks=(2, 2), width=0.75)
    settings.update(num_classes=11, classes=CAMVID, ignore=(11,), iterations=200, batch_size=8)
    settings.update(learning_rate=0.05, crop=(144, 192), short_side=180, test_size=(180, 240))
    settings.update(rates=(3, 6, 9), channels=64)
  return config.lock()
