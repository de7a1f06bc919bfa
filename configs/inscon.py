"""InsCon, "InsCon: Instance Consistency Feature Representation via Self-Supervised Learning" (Yang et al.).

  python -m conic_jax.main --config=configs/inscon.py                    ImageNet, 200 epochs
  python -m conic_jax.main --config=configs/inscon.py:multi              Table 7's other rows: single (MoCo
                                                                         v2), multi (Table 6: 70.3), cell
  python -m conic_jax.main --config=configs/inscon.py:tau_0.1            Table 8: tau_0.1, 0.2, 0.3, 0.4
  python -m conic_jax.main --config=configs/inscon.py:res4               Table 9: res4, res5
  python -m conic_jax.main --config=configs/inscon.py:photos             minutes on a laptop, no download
  python -m conic_jax.main --config=configs/inscon.py:folder --config.data.dir=IMAGES
  python -m conic_jax.preview --config=configs/inscon.py:photos          draws crops, cells and mosaics

The paper trained on 8 V100 and gives no hours; its figures are for detection (Mask R-CNN R50-FPN 1x on COCO:
40.9 box AP), 70.3 is linear top-1 on ImageNet. Our choices, where the paper is silent: the cells' hidden
layer is as wide as the head's; each image is in one mosaic per step; the mosaics' queries have their own head
and use the single head's keys; two crops overlap by at least a hundredth of the smaller one. Eq. 2 as printed
counts the negatives once for the four quadrants together; we count them for each. Its loss then starts at
11.09 like the other two, not at 9.70, and the paper says that the initial losses are similar. Changed: beyond
the outermost features the surface under the cells stays constant; in precise RoI pooling it falls to zero
(config.cell.outside=zero). Table 8 has the cell head with the single one, without mosaics. Everything else is
as in configs/moco_v2.py.
"""
from ml_collections import ConfigDict

from configs import common, moco_v2

TEMPERATURES = (0.1, 0.2, 0.3, 0.4)
ABLATIONS = {'single': {'multi.enabled': False, 'cell.enabled': False, 'views.overlap': 0.0},
             'multi': {'cell.enabled': False, 'views.overlap': 0.0}, 'cell': {'multi.enabled': False},
             **{f'tau_{temperature:g}': {'multi.enabled': False, 'cell.temperature': temperature}
                for temperature in TEMPERATURES},
             'res4': {'cell.position': 'res4'}, 'res5': {'cell.position': 'res5'}}


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of Table 1; a preset changes what its table or data set requires."""
  config = moco_v2.contrast(moco_v2.setting('inscon'))

  # Crops of query and key are redrawn until they overlap.
  config.views.overlap = 0.01     # least overlap, as a share of the smaller crop

  # Multi-instance head: mosaics of four views at half the side.
  config.multi = common.group({
    'enabled': True,              # use this head
  })

  # Cell-instance head.
  config.cell = common.group({
    'enabled': True,              # use this head
    'size': 3,                    # cells per side
    'position': 'res5',           # the last stage; 'res4' is the one before
    'hidden': 2048,               # width of its hidden layer
    'features': 256,              # width of its output
    'outside': 'edge',            # value beyond the outermost features: theirs ('edge') or 'zero'
    'queue': 64_512,              # keys: 28 batches of 256 images with 9 cells
    'temperature': 0.2,           # of its softmax
  })
  return common.with_preset(config, 'inscon', PRESETS, preset)


def ablation(changes: dict):
  """The paper's settings with these changes."""
  def preset(config: ConfigDict) -> None:
    moco_v2.paper(config)
    config.update_from_flattened_dict(changes)
  return preset


def fewer_cells(of_moco):
  """Laptop-sized data sets: MoCo's preset, with proportionally few cell keys."""
  def preset(config: ConfigDict) -> None:
    of_moco(config)
    config.cell.hidden = config.head.hidden
    config.cell.features = 128
    config.cell.queue = 9 * config.queue.size
  return preset


PRESETS = {**moco_v2.PRESETS, 'cifar10': fewer_cells(moco_v2.small), 'photos': fewer_cells(moco_v2.photos),
           **{name: ablation(changes) for name, changes in ABLATIONS.items()}}
