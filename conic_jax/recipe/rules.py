"""The rules: a function (config, facts) -> (value, reason) for each field that may be open, in order.

A rule may read fields earlier in the order. docs/recipe.md has the measurement behind each number; settings
for accelerators, which could not be measured, follow published runs, named there.
"""
import math
from collections.abc import Callable
from typing import Any

from conic_jax.errors import UserError
from conic_jax.recipe.facts import Facts

UNUSED = 'plays no part in this network'
Rule = Callable[[Any, Facts], tuple[Any, str]]

# ---- Length -------------------------------------------------------------------------------------
MINUTES_ON_A_CPU = 40.0     # of training; start-up, evaluation and pictures are extra
MOST_OF_THE_IMAGES = 8      # a batch is at most an eighth of them
SMALLEST_BATCH = 8
MOSAIC = 4                  # images of one of InsCon’s mosaics; the batch must be a multiple
PAPER_EPOCHS, PAPER_IMAGES = 200, 1_281_167
FEWEST_EPOCHS, MOST_EPOCHS = 100, 1000
ENOUGH_EPOCHS = 8           # fewer have not been measured
ENOUGH_VISITS = 25          # of a row; experiments/recipe has shorter runs, experiments/recipe_default longer
# ---- Views and network of a CPU -----------------------------------------------------------------
SIZE_ON_A_CPU, BLOCKS_ON_A_CPU, WIDTH_ON_A_CPU = 48, (1, 1, 1), 0.5
SMALL_HIDDEN = 512
SMALLEST_CROP = 0.15
# The usual patch in pixels, and how many a side a view has at least; else smaller ones are taken.
PATCHES = {'vit': (16, 12), 'convnext': (4, 24)}
BLURRED_FROM = 96           # view size in pixels
MILD_COLOURS, FULL_COLOURS = 0.5, 1.0
# ---- Learning -----------------------------------------------------------------------------------
TRAVEL = 0.5                # radians that a row turns per visit, at the peak learning rate
PACE = 4.0
ADAMW_RATE = 5e-4           # at a batch of 128
FEW_IMAGES = 100_000        # below this, settings for small data sets
TEMPERATURES = {'conic': 0.1, 'conic_s': 0.1, 'exemplar': 0.1, 'one_million': 0.15, 'data_parallel': 0.15,
                'pic': 0.2, 'moco': 0.2, 'co2': 0.2, 'inscon': 0.2, 'simclr': 0.2, 'instdisc': 0.3}


# ---- Views --------------------------------------------------------------------------------------


def view_size(config: Any, facts: Facts) -> tuple[int, str]:
  if not facts.accelerator:
    return SIZE_ON_A_CPU, 'costs a CPU no more than 32'
  size = min(224, max(32, facts.short_side // 32 * 32))
  return size, f'images of {facts.short_side} pixels, in steps of 32 up to 224'


def crop(config: Any, facts: Facts) -> tuple[tuple[float, float], str]:
  """Crops are nearly square, so they cover a smaller part of a strip."""
  if facts.aspect <= 2:
    return (SMALLEST_CROP, 1.0), 'ConIC’s'
  whole = 1 / facts.aspect
  return ((round(SMALLEST_CROP * whole, 4), round(whole, 4)),
          f'ConIC’s share of a square, as images are {facts.aspect:.1f} times as long as wide')


def strength(config: Any, facts: Facts) -> tuple[float, str]:
  if facts.num_images >= FEW_IMAGES:
    return FULL_COLOURS, 'SimCLR’s'
  return MILD_COLOURS, f'milder colours below {FEW_IMAGES:,} images'


def blur(config: Any, facts: Facts) -> tuple[float, str]:
  if config.views.size < BLURRED_FROM:
    return 0.0, f'none on views below {BLURRED_FROM} pixels'
  return 0.5, 'SimCLR’s'


def second_blur(config: Any, facts: Facts) -> tuple[float, str]:
  return (0.0, 'as the first view’s') if not config.views.blur else (0.1, 'BYOL’s')


# ---- Network ------------------------------------------------------------------------------------


def network(config: Any, facts: Facts) -> tuple[str, str]:
  if not facts.accelerator:
    return 'resnet18', 'basic blocks, for a CPU'
  if facts.num_images < FEW_IMAGES:
    return 'resnet18', f'below {FEW_IMAGES:,} images'
  return 'resnet50', f'from {FEW_IMAGES:,} images'


def blocks(config: Any, facts: Facts) -> tuple[tuple[int, ...], str]:
  if facts.accelerator or config.encoder.name != 'resnet18':
    return (), 'all of the network’s'
  return BLOCKS_ON_A_CPU, 'blocks of each stage, for a CPU'


def width(config: Any, facts: Facts) -> tuple[float, str]:
  if facts.accelerator or config.encoder.name != 'resnet18':
    return 1.0, 'the network’s own'
  return WIDTH_ON_A_CPU, 'of the channels, for a CPU'


def stem(config: Any, facts: Facts) -> tuple[str, str]:
  if facts.accelerator and config.views.size <= 40:
    return 'cifar', 'views of at most 40 pixels'
  return 'imagenet', 'stride 4'


def family(config: Any) -> str:
  """The kind of the encoder, such as 'vit' of vit_small."""
  return config.encoder.name.partition('_')[0]


def patch(config: Any, facts: Facts) -> tuple[int, str]:
  """The usual patch; half or a quarter of it where too few would cover a view."""
  if family(config) not in PATCHES:
    return 0, UNUSED
  largest, fewest = PATCHES[family(config)]
  side = next((side for side in (largest, largest // 2) if config.views.size >= fewest * side
               and config.views.size % side == 0), largest // 4)
  return side, f'pixels, {config.views.size // side} patches a side'


def positions(config: Any, facts: Facts) -> tuple[str, str]:
  return 'sincos', 'for images of any size' if family(config) == 'vit' else UNUSED


def hidden(config: Any, facts: Facts) -> tuple[int, str]:
  if facts.accelerator and facts.num_images >= FEW_IMAGES:
    return 2048, 'ConIC’s'
  return SMALL_HIDDEN, 'for a small network'


def same_hidden(config: Any, facts: Facts) -> tuple[int, str]:
  return config.head.hidden, 'as config.head.hidden'


# ---- Batch and length ---------------------------------------------------------------------------


def minutes(config: Any, facts: Facts) -> tuple[float, str]:
  if config.epochs is not None:
    return 0.0, 'config.epochs says how long'
  if facts.accelerator:
    return 0.0, 'no limit on an accelerator'
  return MINUTES_ON_A_CPU, 'without an accelerator'


def batch_size(config: Any, facts: Facts) -> tuple[int, str]:
  """A power of two, rounded to a multiple of the device count."""
  usual = 256 if facts.accelerator else 128
  if facts.accelerator and facts.num_images >= FEW_IMAGES:
    usual = 512
  share = max(SMALLEST_BATCH, facts.num_images // MOST_OF_THE_IMAGES)
  size = min(usual, 2 ** int(math.log2(share)))
  unit = math.lcm(facts.devices, mosaic(config))
  size = max(size // unit, 1) * unit
  reason = (f'an eighth of {facts.num_images:,} images at most' if share < usual
            else 'on an accelerator' if facts.accelerator else 'on a CPU')
  return size, reason


def mosaic(config: Any) -> int:
  """How many images of a batch belong together."""
  return MOSAIC if 'multi' in config and config.multi.enabled else 1


def epochs(config: Any, facts: Facts) -> tuple[int, str]:
  """As in the papers for this number of images, limited by the minutes."""
  grown = PAPER_EPOCHS * (PAPER_IMAGES / facts.num_images) ** 0.25
  wanted = round(min(max(grown, FEWEST_EPOCHS), MOST_EPOCHS))
  reason = f'{PAPER_EPOCHS} at {PAPER_IMAGES:,} images, more for fewer'
  if not (config.minutes and facts.seconds_per_image):
    return wanted, reason
  an_epoch = facts.num_images * facts.seconds_per_image
  possible = int(config.minutes * 60 / an_epoch)
  if possible < 1:
    raise UserError(
      f'config.minutes is {config.minutes:g} and one epoch takes {an_epoch / 60:.3g} minutes here '
      f'({config.encoder.name}, views of {config.views.size} pixels, {facts.num_images:,} images): raise '
      'config.minutes, leave config.encoder and config.views.size to the recipe, or set config.epochs.')
  if possible >= wanted:
    return wanted, reason
  possible = rounded(possible)
  return possible, (f'{config.minutes:g} minutes at {1000 * facts.seconds_per_image:.3g} ms an image'
                    f'{too_few(config, possible)}')


def too_few(config: Any, epochs: int) -> str:
  """Note about a short run; a classifier row is visited once per epoch."""
  if epochs < ENOUGH_EPOCHS:
    return f'; FEW: below {ENOUGH_EPOCHS} expect little, give more minutes'
  if 'classifier' in config and epochs < ENOUGH_VISITS:
    return f'; few: below {ENOUGH_VISITS} SimCLR (configs/simclr.py:folder) was ahead'
  return ''


def rounded(number: int) -> int:
  """Rounds down to two digits, so that timing noise does not change the training."""
  unit = 10 ** max(0, len(str(number)) - 2)
  return number // unit * unit


def steps(config: Any, facts: Facts) -> int:
  """Number of steps of the whole run."""
  return config.epochs * max(1, facts.num_images // config.batch_size)


# ---- Optimizer ----------------------------------------------------------------------------------


def optimizer(config: Any, facts: Facts) -> tuple[str, str]:
  if family(config) in PATCHES:
    return 'adamw', 'for transformers and ConvNeXts'
  return 'sgd', 'LARS is for batches of thousands'


def learning_rate(config: Any, facts: Facts) -> tuple[float, str]:
  """Scales with the square root of the batch size: 0.06 at 128, the paper's 0.12 at 512."""
  if config.optimizer.name == 'adamw':
    return round(ADAMW_RATE * (config.batch_size / 128) ** 0.5, 6), f'{ADAMW_RATE:g}·√(batch/128), of AdamW'
  rate = 0.06 * (config.batch_size / 128) ** 0.5
  return round(rate, 4), '0.06·√(batch/128)'


def warmup(config: Any, facts: Facts) -> tuple[float, str]:
  return float(min(10, config.epochs / 10)), 'a tenth of the epochs, ten at most'


def schedule(config: Any, facts: Facts) -> tuple[str, str]:
  return 'cosine', 'to zero'


def milestones(config: Any, facts: Facts) -> tuple[tuple[int, ...], str]:
  if config.optimizer.schedule == 'steps':
    marks = (round(share * config.epochs) for share in (0.6, 0.8))
    return tuple(mark for mark in marks if 0 < mark < config.epochs), '60% and 80% of the epochs'
  return (), 'none of a cosine'


# ---- Loss ---------------------------------------------------------------------------------------


def temperature(config: Any, facts: Facts) -> tuple[float, str]:
  return TEMPERATURES.get(config.method, 0.2), f'for {config.method} on small data sets'


def alpha_pace(config: Any, facts: Facts) -> tuple[float, str]:
  return PACE, 'α waits until instances are told apart'


def hardest(config: Any, facts: Facts) -> tuple[int, str]:
  return max(1, min(100, facts.num_images // 20)), 'the paper’s 100, a twentieth of the images at most'


def prior_normalise(config: Any, facts: Facts) -> tuple[bool, str]:
  return True, 'rows of unit norm turn as fast as config.classifier.lr_scale says'


def noise(config: Any, facts: Facts) -> tuple[int, str]:
  return max(1, min(4096, facts.num_images // 5)), 'the paper’s 4096, a fifth of the images at most'


# ---- Rows, queue, momentum encoder --------------------------------------------------------------


def sampler_window(config: Any, facts: Facts) -> tuple[int, str]:
  window = min(131_072, facts.num_images * 2 // 5 // config.batch_size * config.batch_size)
  return (window if window >= config.batch_size else 0), 'the paper’s, two fifths of the images at most'


def sampler_stride(config: Any, facts: Facts) -> tuple[int, str]:
  return config.sampler.window // 8, 'an eighth of the window'


def classifier_window(config: Any, facts: Facts) -> tuple[int, str]:
  if config.sampler.window:
    return max(config.batch_size, config.sampler.window // 2), 'half of the sampler’s'
  return 65_536, 'the paper’s; fewer images are all in the softmax'


def lr_scale(config: Any, facts: Facts) -> tuple[float, str]:
  """A row turns by η s / ((1 − m) B τ r²) radians per visit, once per epoch."""
  if config.method == 'data_parallel':
    return 1.0, 'rows are the encoder’s parameters'
  rows = config.classifier
  inverse = (1 - rows.momentum) * config.batch_size * config.temperature * row_norm(config) ** 2
  if not (config.optimizer.learning_rate > 0 and inverse > 0):
    return 1.0, 'the encoder’s rate'
  turn = config.optimizer.learning_rate / inverse
  scale = max(1.0, float(f'{TRAVEL / turn:.2g}'))
  return scale, f'a row turns by {scale * turn:.1g} radians at a visit'


def row_norm(config: Any) -> float:
  """Initial norm of the rows."""
  if 'prior' in config and config.prior.batch_norm != 'none':
    return 1.0 if config.prior.normalise else config.head.features ** 0.5
  return config.classifier.norm


def queue_size(config: Any, facts: Facts) -> tuple[int, str]:
  largest = 65_536 if facts.num_images >= FEW_IMAGES else 4096
  size = max(config.batch_size, min(largest, facts.num_images // 2))
  return size, f'half of the images, {largest:,} at most'


def mask_own(config: Any, facts: Facts) -> tuple[bool, str]:
  return True, 'an image may come back while its last key is in the queue'


def cell_queue(config: Any, facts: Facts) -> tuple[int, str]:
  images = max(config.batch_size, min(config.queue.size, 7168))
  return config.cell.size ** 2 * images, 'cells of as many images as the queue has, 7,168 at most'


def momentum(config: Any, facts: Facts) -> tuple[float, str]:
  """The key encoder averages over a fifteenth of the run; looking back further hurts without a queue."""
  lowest, highest = (0.99, 0.999) if 'queue' in config else (0.95, 0.996)
  value = min(max(1 - 15 / max(1, steps(config, facts)), lowest), highest)
  return round(value, 4), f'it looks back over a fifteenth of the steps, from {lowest} to {highest}'


def groups(config: Any, facts: Facts) -> tuple[int, str]:
  images = config.batch_size // mosaic(config)
  possible = [count for count in (8, 4, 2) if images % count == 0 and images // count >= 2]
  return (possible[0] if possible else 0), 'MoCo’s eight, where the batch allows'


# ---- Reports and evaluation ---------------------------------------------------------------------


def log_every(config: Any, facts: Facts) -> tuple[int, str]:
  return max(1, min(50, steps(config, facts) // 100)), 'a hundred reports, 50 steps apart at most'


def knn_every(config: Any, facts: Facts) -> tuple[int, str]:
  if not facts.labelled:
    return 0, 'no labels to measure by'
  return max(1, -(-config.epochs // 5)), 'five times'


def every_epochs(config: Any, facts: Facts) -> tuple[float, str]:
  if facts.num_images >= FEW_IMAGES:
    return 1.0, 'every epoch'
  return float(max(1, round(config.epochs / 20))), 'twenty times'


def eval_batch(config: Any, facts: Facts) -> tuple[int, str]:
  size = 128 if not facts.accelerator else 512
  return max(size // facts.devices, 1) * facts.devices, 'images at a time'


def eval_resize(config: Any, facts: Facts) -> tuple[int, str]:
  if config.views.size < 112:
    return config.views.size, 'the whole central square of small images'
  return 0, 'as ImageNet’s 256 for 224'


def linear_epochs(config: Any, facts: Facts) -> tuple[int, str]:
  if facts.accelerator:
    return 100, 'ConIC’s'
  return max(3, min(10, config.epochs // 2)), 'on a CPU, half of the training’s at most'


def linear_batch(config: Any, facts: Facts) -> tuple[int, str]:
  return eval_batch(config, facts)


def linear_rates(config: Any, facts: Facts) -> tuple[tuple[float, ...], str]:
  return (0.1, 0.3, 1.0, 3.0, 10.0), 'the best on a tenth of the training images'


def linear_normalise(config: Any, facts: Facts) -> tuple[str, str]:
  return 'none', 'the features as they are'


RULES: dict[str, Rule] = {
  'views.size': view_size, 'views.crop': crop, 'views.strength': strength, 'views.blur': blur,
  'second_view.blur': second_blur,
  'encoder.name': network, 'encoder.blocks': blocks, 'encoder.width': width, 'encoder.stem': stem,
  'encoder.patch': patch, 'encoder.positions': positions,
  'head.hidden': hidden, 'predictor.hidden': same_hidden, 'cell.hidden': same_hidden,
  'minutes': minutes, 'batch_size': batch_size, 'epochs': epochs,
  'optimizer.name': optimizer, 'optimizer.learning_rate': learning_rate, 'optimizer.warmup_epochs': warmup,
  'optimizer.schedule': schedule, 'optimizer.milestones': milestones,
  'temperature': temperature, 'alpha_pace': alpha_pace, 'smoothing.k': hardest,
  'prior.normalise': prior_normalise, 'loss.noise': noise,
  'sampler.window': sampler_window, 'sampler.stride': sampler_stride, 'classifier.window': classifier_window,
  'classifier.lr_scale': lr_scale, 'queue.size': queue_size, 'queue.mask_own': mask_own,
  'cell.queue': cell_queue,
  'momentum.start': momentum, 'batch_norm.groups': groups,
  'log_every': log_every, 'knn_every': knn_every, 'checkpoint.every_epochs': every_epochs,
  'eval.batch_size': eval_batch, 'eval.resize': eval_resize, 'linear.epochs': linear_epochs,
  'linear.batch_size': linear_batch, 'linear.learning_rates': linear_rates,
  'linear.normalise': linear_normalise}
