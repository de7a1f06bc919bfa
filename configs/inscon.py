"""InsCon, "InsCon: Instance Consistency Feature Representation via Self-Supervised Learning" (Yang et al.).

  python -m conic_jax.main --config=configs/inscon.py                    ImageNet, 200 epochs
  python -m conic_jax.main --config=configs/inscon.py:multi              Table 7's other rows: single (MoCo
                                                                         v2), multi (Table 6: 70.3), cell
  python -m conic_jax.main --config=configs/inscon.py:tau_0.1            Table 8: tau_0.1, 0.2, 0.3, 0.4
  python -m conic_jax.main --config=configs/inscon.py:res4               Table 9: res4, res5
  python -m conic_jax.main --config=configs/inscon.py:photos             minutes on a laptop, no download
  python -m conic_jax.main --config=configs/inscon.py:folder --config.data.dir=IMAGES
  python -m conic_jax.preview --config=configs/inscon.py:photos          draws crops, cells and mosaics

The paper trained on 8 V100 and gives no hours; its figures are of detection (Mask R-CNN R50-FPN 1x on COCO:
40.9 box AP), 70.3 is linear top-1 on ImageNet. Ours to choose, as the paper is silent: the width of the
cells' hidden layer is the head's; each image is in one mosaic of a step; the mosaics' queries have a head of
their own and the single head's keys; Eq. 2, which as printed counts the negatives once for the four quadrants
together, counts them for each: its loss then starts at 11.09 as the other two do, not at 9.70, and the paper
says that the initial losses are similar; two crops share a hundredth of the smaller one at least. Changed:
beyond the outermost features the surface under the cells goes on, where precise RoI pooling's falls to zero
(config.cell.outside=zero). Table 8 has the cell head beside the single one, without mosaics. All else is as
in configs/moco_v2.py.
"""
from ml_collections import ConfigDict

from configs import auto, moco_v2

TEMPERATURES = (0.1, 0.2, 0.3, 0.4)
ABLATIONS = {'single': {'multi.enabled': False, 'cell.enabled': False, 'views.overlap': 0.0},
             'multi': {'cell.enabled': False, 'views.overlap': 0.0}, 'cell': {'multi.enabled': False},
             **{f'tau_{temperature:g}': {'multi.enabled': False, 'cell.temperature': temperature}
                for temperature in TEMPERATURES},
             'res4': {'cell.position': 'res4'}, 'res5': {'cell.position': 'res5'}}
PRESETS = (*moco_v2.PRESETS, *ABLATIONS)


def get_config(preset: str = 'imagenet') -> ConfigDict:
  """The settings of Table 1; a preset changes what its table or data set needs."""
  if preset not in PRESETS:
    raise ValueError(f"There is no preset '{preset}' of configs/inscon.py; there is: {', '.join(PRESETS)}.")
  config = moco_v2.get_config('imagenet' if preset in ABLATIONS else preset)
  config.method = 'inscon'
  config.run = 'runs/inscon' if preset == 'imagenet' else f'runs/inscon_{preset}'

  # Crops of query and key are drawn anew until they overlap.
  config.views.overlap = 0.01     # the least share of the smaller crop

  # Multi-instance head: mosaics of four views at half the side.
  config.multi = ConfigDict()
  config.multi.enabled = True

  # Cell-instance head.
  config.cell = ConfigDict()
  config.cell.enabled = True
  config.cell.size = 3            # cells a side
  config.cell.position = 'res5'   # the last stage; 'res4' is the one before
  config.cell.hidden = config.head.hidden
  config.cell.features = 256
  config.cell.outside = 'edge'    # beyond the outermost features: the same ('edge'), or 'zero'
  config.cell.queue = 64_512      # 28 batches of 256 images with 9 cells
  config.cell.temperature = 0.2

  if preset in ('photos', 'cifar10'):
    config.cell.features = 128
    config.cell.queue = 9 * config.queue.size
  config.update_from_flattened_dict(ABLATIONS.get(preset, {}))
  if preset == 'folder':
    auto.leave_open(config)
  return config
