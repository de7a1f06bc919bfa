"""From encoded bytes to pixels: every image that the library looks at is decoded here.

JPEG (grey or RGB, baseline or progressive) and PNG go to TensorFlow unchanged. Pillow first converts
everything else (WebP, GIF, BMP, CMYK JPEG, JPEG with an unusual header) to an RGB PNG; of an animation, the
first frame. As in torchvision's default loader, alpha is dropped, not blended, and the EXIF orientation is
ignored. 16-bit samples are scaled to 8 bits; 32-bit samples, whose range is unknown, count as undecodable.
So does a JPEG without its end-of-image marker, which is truncated, even if the crop lies above the cut:
validity never depends on the crop.
"""
import io
import sys

import numpy as np
import PIL.Image

from conic_jax.data.lazy_tensorflow import tf
from conic_jax.terminal import print_line


def hide_gpus() -> None:
  """Leaves the GPUs to JAX, where TensorFlow would claim their memory; says so if it has them already."""
  try:
    tf.config.set_visible_devices([], 'GPU')
  except RuntimeError:  # It cannot be changed once TensorFlow has used a device, as in a notebook.
    if tf.config.get_visible_devices('GPU'):
      print_line('TensorFlow used a GPU before conic_jax was imported, and may hold its memory: import '
                 'conic_jax first, or call tf.config.set_visible_devices([], "GPU") before anything else.',
                 sys.stderr)


hide_gpus()

# Images are the user's own: Pillow's limit would leave out large ones.
PIL.Image.MAX_IMAGE_PIXELS = None

_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
_JPEG_END, _JPEG_SCAN = b'\xff\xd9', 0xda
_PLAIN_FRAMES = {0xc0, 0xc1, 0xc2}
# Segments that decoders skip, or read without an effect on the size: tables, APPn and comments.
_PLAIN_SEGMENTS = {0xc4, 0xdb, 0xdd, *range(0xe0, 0xf0), 0xfe}
CENTRAL = 'central'  # Views in evaluation; the others are 'bilinear' or 'bicubic'.
_SHRINKS = (8, 4, 2)  # libjpeg decodes to these parts of the size at less cost.


def prepare(data: bytes) -> tuple[bytes, int, int]:
  """Converts an encoded image to one that the graph can decode, and reads its size from the header.

  Returns:
    (JPEG or PNG bytes, height, width), or (b'', 0, 0) if the image cannot be decoded.
  """
  plain = _jpeg_size(data) if data.startswith(_JPEG) else _png_size(data)
  if plain is None:
    return _to_png(data)
  height, width = plain
  return (data, height, width) if min(plain) > 0 else (b'', 0, 0)


def decode(data: bytes, least_side: int = 0) -> np.ndarray | None:
  """Decodes a whole image, with the pixels that training sees.

  Args:
    data: the encoded image.
    least_side: if positive, a JPEG may be decoded to a half, a quarter or an eighth of its size, as long as
      its short side keeps this many pixels.

  Returns:
    uint8 [H, W, 3]; None if the image cannot be decoded.
  """
  return decode_prepared(*prepare(data), least_side)


def decode_prepared(prepared: bytes, height: int, width: int, least_side: int = 0) -> np.ndarray | None:
  """As `decode`, of what `prepare` returns."""
  if not prepared:
    return None
  try:
    if not prepared.startswith(_JPEG):
      return tf.io.decode_png(prepared, channels=3).numpy()
    shrink = next((by for by in _SHRINKS if 0 < least_side <= min(height, width) // by), 1)
    return tf.io.decode_jpeg(prepared, channels=3, dct_method='INTEGER_ACCURATE', ratio=shrink).numpy()
  except tf.errors.OpError:
    return None


def decode_views(data: tf.Tensor, boxes: tf.Tensor, groups: tuple[tuple[int, int, str], ...],
                 antialias_above: float) -> tuple[tf.Tensor, ...]:
  """Decodes the smallest box that contains all views once, then crops and resizes the views.

  Args:
    data: bytes of one JPEG or PNG.
    boxes: y, x, height and width in pixels, int32 [V, 4]. Of `CENTRAL` views float32 [V, 8]: those of the
      pixels to decode, and those of the view among them, which need not be whole.
    groups: (number of views, side in pixels, 'bilinear', 'bicubic' or `CENTRAL`) for each group.
    antialias_above: bilinear views shrunk by more than this factor are antialiased.

  Returns:
    For each group, uint8 [count, size, size, 3].
  """
  whole = tf.cast(boxes[:, :4], tf.int32)
  start = tf.reduce_min(whole[:, :2], axis=0)
  extent = tf.reduce_max(whole[:, :2] + whole[:, 2:], axis=0) - start
  image = tf.cond(tf.strings.substr(data, 0, len(_JPEG)) == _JPEG,
                  lambda: tf.io.decode_and_crop_jpeg(data, tf.concat([start, extent], axis=0),
                                                     channels=3, dct_method='INTEGER_ACCURATE'),
                  lambda: tf.slice(tf.io.decode_png(data, channels=3),
                                   tf.concat([start, [0]], axis=0),
                                   tf.concat([extent, [3]], axis=0)))
  starts = tf.pad(whole[:, :2] - start, [[0, 0], [0, 1]])
  extents = tf.pad(whole[:, 2:], [[0, 0], [0, 1]], constant_values=3)
  forms = [form for count, *form in groups for _ in range(count)]
  views = [_resample(image, boxes[i, 4:], start, size) if interpolation == CENTRAL
           else _resize(tf.slice(image, starts[i], extents[i]), size, interpolation, antialias_above)
           for i, (size, interpolation) in enumerate(forms)]
  counts = [count for count, *_ in groups]
  return tuple(tf.stack(views[end - count:end])
               for end, count in zip(np.cumsum(counts), counts, strict=True))


def decode_chunk(data: tf.Tensor, boxes: tf.Tensor, groups: tuple[tuple[int, int, str], ...],
                 antialias_above: float) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
  """Decodes a few images; those that fail become zeros.

  A failing op would abort the whole step. So each image is an element of a small inner data set,
  which drops the failing ones; an element of zeros after the last replaces them.

  Args:
    data: bytes of the images, [c], c known.
    boxes, groups, antialias_above: as for `decode_views`, boxes [c, V, 4 or 8].

  Returns:
    For each group, uint8 [c, count, size, size, 3]; bool [c], which images were decoded.
  """
  chunk: int = data.shape[0]  # pyright: ignore[reportAssignmentType]
  images = tf.data.Dataset.from_tensor_slices((tf.range(chunk), data, boxes))
  views = images.map(tf.autograph.experimental.do_not_convert(
    lambda i, image, box: (i, decode_views(image, box, groups, antialias_above))))
  zeros = tuple(tf.zeros([count, size, size, 3], tf.uint8) for count, size, _ in groups)
  stand_in = tf.data.Dataset.from_tensors((tf.constant(chunk), zeros))
  views = views.ignore_errors().concatenate(stand_in).batch(chunk).take(1)
  places, pixels = views.get_single_element()

  def mend():
    sources = tf.fill([chunk + 1], tf.size(places) - 1)
    sources = tf.tensor_scatter_nd_update(sources, places[:, None], tf.range(tf.size(places)))
    return tuple(tf.gather(group, sources[:chunk]) for group in pixels)

  pixels = tf.cond(places[-1] == chunk, mend, lambda: pixels)
  decoded = tf.reduce_any(places[:, None] == tf.range(chunk), axis=0)
  return tuple(tf.ensure_shape(group, [chunk, count, size, size, 3])
               for group, (count, size, _) in zip(pixels, groups, strict=True)), decoded


def box_type(groups: tuple[tuple[int, int, str], ...]) -> tuple[tf.DType, int]:
  """The type of the boxes of such views, and the fields of one."""
  return (tf.float32, 8) if any(form == CENTRAL for *_, form in groups) else (tf.int32, 4)


def _resample(image, box, start, size):
  """A view of a box that need not be whole pixels, as Pillow resizes the image and cuts it then."""
  scale = size / box[2:]
  view = tf.raw_ops.ScaleAndTranslate(
    images=tf.cast(image, tf.float32)[None], size=[size, size], scale=scale,
    translation=(tf.cast(start, tf.float32) - box[:2]) * scale, kernel_type='triangle', antialias=True)[0]
  return tf.cast(view + 0.5, tf.uint8)


def _resize(crop, size, interpolation, antialias_above):
  shrunk = tf.cast(tf.reduce_max(tf.shape(crop)[:2]), tf.float32) > size * antialias_above
  crop = tf.cast(crop, tf.float32)  # TensorFlow's resize is only vectorised for float32.
  if interpolation == 'bicubic':  # Its kernel has negative lobes, so edges overshoot.
    view = tf.image.resize(crop, [size, size], tf.image.ResizeMethod.BICUBIC)
    return tf.cast(tf.clip_by_value(view, 0, 255) + 0.5, tf.uint8)
  view = tf.cond(shrunk, lambda: tf.image.resize(crop, [size, size], antialias=True),
                 lambda: tf.image.resize(crop, [size, size]))
  return tf.cast(view + 0.5, tf.uint8)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
  """(height, width); (0, 0) if truncated; None if the header has anything unusual: Pillow decides then."""
  at, size = 2, None
  while at + 9 < len(data) and data[at] == 0xff:
    marker, length = data[at + 1], int.from_bytes(data[at + 2:at + 4], 'big')
    if marker == _JPEG_SCAN:
      return size if size is None or data.rfind(_JPEG_END, at) > 0 else (0, 0)
    if marker in _PLAIN_FRAMES and size is None and data[at + 4] == 8 and data[at + 9] in (1, 3):
      size = int.from_bytes(data[at + 5:at + 7], 'big'), int.from_bytes(data[at + 7:at + 9], 'big')
    elif marker not in _PLAIN_SEGMENTS or length < 2:
      return None
    at += 2 + length
  return None


def _png_size(data: bytes) -> tuple[int, int] | None:
  if not data.startswith(_PNG) or data[12:16] != b'IHDR':
    return None
  return int.from_bytes(data[20:24], 'big'), int.from_bytes(data[16:20], 'big')


def _to_png(data: bytes) -> tuple[bytes, int, int]:
  try:
    with PIL.Image.open(io.BytesIO(data)) as image:
      rgb = _to_rgb(image)
    png = io.BytesIO()
    rgb.save(png, 'PNG', compress_level=0)
    return png.getvalue(), rgb.height, rgb.width
  except Exception:  # Pillow's decoders raise all kinds of exceptions; each means an unreadable image.
    return b'', 0, 0


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
  """Converts to RGB; Pillow's own conversion clips samples of more than 8 bits instead of scaling them."""
  if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM'):
    return PIL.Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert('RGB')
  if image.mode in ('I', 'F'):
    raise ValueError(f'the range of samples of kind {image.mode} is unknown')
  return image.convert('RGB')
