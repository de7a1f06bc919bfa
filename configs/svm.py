"""Linear SVMs on frozen features of images with several labels: VOC07's classification.

  python -m conic_jax.main --config=configs/svm.py:voc07 --config.encoder=runs/conic
  python -m conic_jax.main --config=configs/svm.py:folder --config.encoder=runs/conic --config.data.dir=IMAGES
  python -m conic_jax.main --config=configs/svm.py:photos --config.encoder=runs/photos

A folder has subfolders train and test, each with its images and a file labels.csv. The first line of the file
is `image,labels`; the others look like `beach/01.jpg,person;boat`. With --config.svm.labels= the subfolders
are the classes. Images with a single label, as in photos and cifar10, are positives of one class. The result
is printed and written to svm_PRESET.json in config.run, by default the encoder's run or runs/evaluated_NAME.
"""
from ml_collections import ConfigDict

from configs import common

PRESETS = ('voc07', 'folder', 'cifar10', 'photos')


def get_config(preset: str = 'voc07') -> ConfigDict:
  """VISSL's costs and folds, squared hinge loss, unit features of the central 224 of 256 pixels."""
  common.check('svm', PRESETS, preset)
  config = common.classification('svm', f'svm_{preset}', preset)
  config.svm = common.group({
    # Each class uses the best of these.
    'costs': (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    'folds': 3,                   # of the cross-validation
    'max_iterations': 2000,       # of one SVM
    'labels': 'labels.csv',       # in the folder of each split; '' if its subfolders are the classes
  })
  if preset == 'voc07':
    config.data.update(name='voc/2007', train='train+validation', test='test')
  elif preset == 'folder':
    config.data.test = 'test'
  return config.lock()
