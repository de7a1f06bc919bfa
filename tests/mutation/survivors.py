"""Faults that change nothing a user could see: (module, operator, line before, line after) -> why."""

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
  ('methods/momentum', 'NumberReplacer',
   "params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 0])",
   "params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 1])"):
    'the shape of a view is read alone',
  ('evals/linear', 'ReplaceTrueWithFalse', '@dataclasses.dataclass(frozen=True)',
   '@dataclasses.dataclass(frozen=False)'):
    'nothing changes it',
  ('methods/byol', 'NumberReplacer', 'self.network = Network(config, dtype, groups=2, norm_output=False)',
   'self.network = Network(config, dtype, groups= 3, norm_output=False)'):
    'no image belongs to the third group',
  ('methods/byol', 'NumberReplacer',
   "params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 0])",
   "params, batch_stats = self.network.init(encoder_rng, head_rng, batch['views'][0][:, 1])"):
    'the shape of a view is read alone',
  ('hardware/local_rows', 'ReplaceTrueWithFalse', 'is_split: bool = True) -> jax.Array:',
   'is_split: bool = False) -> jax.Array:'):
    'XLA splits the same scatter over the devices, and moves no row',
  ('data/augment', 'ReplaceUnaryOperator_USub_UAdd', 'radius = int(spec.blur_kernel * images.shape[-2] / 2)',
   'radius = int(spec.blur_kernel * images.shape[+2] / 2)'):
    'the same axis of four',
  ('data/augment', 'ReplaceUnaryOperator_USub_UAdd',
   "targets = [jnp.where(chosen['contrast'], jnp.mean(tone, (-2, -1), keepdims=True), target)",
   "targets = [jnp.where(chosen['contrast'], jnp.mean(tone, (+2, -1), keepdims=True), target)"):
    'the same axis of four',
  ('data/augment', 'ReplaceUnaryOperator_USub_UAdd', 'for axis in (-1, -2):', 'for axis in (-1, +2):'):
    'the same axis of four',
  ('views', 'NumberReplacer',
   "'overlap': 0.0, 'flip': 0.0, 'jitter': 0.0, 'strength': 0.0, 'colour': 'torchvision',",
   "'overlap': 0.0, 'flip': 1.0, 'jitter': 0.0, 'strength': 0.0, 'colour': 'torchvision',"):
    'nothing is drawn for a view in evaluation',
  ('views', 'NumberReplacer',
   "'overlap': 0.0, 'flip': 0.0, 'jitter': 0.0, 'strength': 0.0, 'colour': 'torchvision',",
   "'overlap': 0.0, 'flip': 0.0, 'jitter': 0.0, 'strength': 1.0, 'colour': 'torchvision',"):
    'nothing is drawn for a view in evaluation',
  ('views', 'NumberReplacer',
   "'additive_brightness': False, 'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0,",
   "'additive_brightness': False, 'brightness': 0.0, 'contrast': 1.0, 'saturation': 0.0, 'hue': 0.0,"):
    'nothing is drawn for a view in evaluation',
  ('evals/knn', 'NumberReplacer', 'chunk: int = 8192) -> tuple[np.ndarray, np.ndarray]:',
   'chunk: int = 8193) -> tuple[np.ndarray, np.ndarray]:'):
    'the same is found in chunks of any size',
  ('losses/hardest', 'NumberReplacer', '_FEW = (0, 8, 32)', '_FEW = (0, 9, 32)'):
    'the same is found with other groups',
  ('losses/hardest', 'NumberReplacer',
   "return min(64 if mesh.devices.flat[0].platform == 'cpu' else 1024, num_queries)",
   "return min(64 if mesh.devices.flat[ -1].platform == 'cpu' else 1024, num_queries)"):
    'devices of a mesh are of one platform',
  ('losses/hardest', 'NumberReplacer', 'places = jnp.minimum(start + jnp.arange(block), len(queries) - 1)',
   'places = jnp.minimum(start + jnp.arange(block), len(queries) - 0)'):
    'an index beyond the end is the last one in JAX',
  ('memories/delayed', 'ReplaceComparisonOperator_LtE_Lt',
   'under_way = np.flatnonzero(block * _BLOCK <= stop)', 'under_way = np.flatnonzero(block * _BLOCK < stop)'):
    'at the end of a block there is nothing left to multiply by',
  ('memories/delayed', 'NumberReplacer',
   'array = np.concatenate([array, np.zeros((max(1024, index // 4), *array.shape[1:]), array.dtype)])',
   'array = np.concatenate([array, np.zeros((max(1024, index // 5), *array.shape[1:]), array.dtype)])'):
    'an array that has room for other numbers of steps',
  ('memories/device_window', 'NumberReplacer', 'OUTSIDE, FRESH, RECENT = 0, 1, 2',
   'OUTSIDE, FRESH, RECENT = 0, 1, 3'):
    'three numbers that differ',
  ('memories/row_file', 'NumberReplacer', 'os.posix_fadvise(self._files[1], 0, 0, os.POSIX_FADV_WILLNEED)',
   'os.posix_fadvise(self._files[1], 0, 1, os.POSIX_FADV_WILLNEED)'):
    'a hint to the disk',
  ('memories/row_file', 'ReplaceBinaryOperator_Add_Sub', 'ids = (places + self._ids.start).tolist()',
   'ids = (places - self._ids.start).tolist()'):
    'another number of its own for each row',
  ('memories/row_file', 'NumberReplacer', 'sums = self._sums[block * _BLOCK:(block + 1) * _BLOCK]',
   'sums = self._sums[block * _BLOCK:(block + 2) * _BLOCK]'):
    'the next block is written with what it holds',
  ('memories/host_rows', 'NumberReplacer', 'self._keep(step - 1)', 'self._keep(step - 0)'):
    'outputs of later steps are not there yet',
  ('memories/host_rows', 'NumberReplacer',
   'return Stored(np.empty((len(ids), 2, 0), np.float32), self._seen[ids], np.ones(len(ids), bool))',
   'return Stored(np.empty((len(ids), 3, 0), np.float32), self._seen[ids], np.ones(len(ids), bool))'):
    'an array without numbers',
  ('memories/host_rows', 'NumberReplacer',
   'return Stored(np.empty((len(ids), 2, 0), np.float32), self._seen[ids], np.ones(len(ids), bool))',
   'return Stored(np.empty((len(ids), 2, 1), np.float32), self._seen[ids], np.ones(len(ids), bool))'):
    'rows on the device are not read here',
  ('losses/dense', 'NumberReplacer', 'MASKED = -1e9', 'MASKED = - 999999999.0'):
    'its exponential is 0 all the same',
  ('losses/dense', 'NumberReplacer',
   'positives = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0]',
   'positives = jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 1]'):
    'an index beyond the end is the last one in JAX',
  ('losses/dense', 'NumberReplacer',
   'return jax.nn.logsumexp(exponents) - jnp.log(jnp.maximum(pair.sum(), 1))',
   'return jax.nn.logsumexp(exponents) - jnp.log(jnp.maximum(pair.sum(), 2))'):
    'pairs come in both orders: there are none, or at least two',
  ('memories/instance_rows', 'ReplaceTrueWithFalse', '@dataclasses.dataclass(frozen=True)',
   '@dataclasses.dataclass(frozen=False)'):
    'nothing changes it',
  ('losses/dense', 'NumberReplacer', 'others = jax.nn.logsumexp(jax.nn.logsumexp(negatives, axis=2), axis=1)',
   'others = jax.nn.logsumexp(jax.nn.logsumexp(negatives, axis= 1), axis=1)'):
    'the same sum, queries first',
  ('data/augment', 'NumberReplacer', 'if spec.jitter > 0 and spec.strength > 0:',
   'if spec.jitter > 0 and spec.strength > -1:'):
    'at strength 0 no change has a range, and the loop makes no turn',
  ('views', 'NumberReplacer', 'jitter=0.0, grayscale=0.0, blur=0.0, solarise=0.0, overlap=0.0)',
   'jitter= -1.0, grayscale=0.0, blur=0.0, solarise=0.0, overlap=0.0)'):
    'a probability below 0 is as good as 0',
  ('views', 'NumberReplacer', 'jitter=0.0, grayscale=0.0, blur=0.0, solarise=0.0, overlap=0.0)',
   'jitter=0.0, grayscale=0.0, blur= -1.0, solarise=0.0, overlap=0.0)'):
    'a probability below 0 is as good as 0',
  ('memories/host_store', 'NumberReplacer', '_DUMP_BLOCK = 16384  # Rows.', '_DUMP_BLOCK = 16383  # Rows.'):
    'the file is the same in whatever blocks it is written',
  ('memories/delayed', 'NumberReplacer', '_BLOCKS_AT_ONCE = 4096', '_BLOCKS_AT_ONCE = 4097'):
    'the products are the same, however many are made at once',
  ('memories/delayed', 'NumberReplacer',
   'return jnp.stack([entry(1, 0) * momentum + entry(1, 1) * weights,',
   'return jnp.stack([entry(1, 0) * momentum + entry(1, 2) * weights,'):
    'an index beyond the end is the last one in JAX',
  ('memories/delayed', 'NumberReplacer',
   'products = self._multiplied(np.where(own, self._rates[np.where(own, steps, 0)], np.nan))',
   'products = self._multiplied(np.where(own, self._rates[np.where(own, steps, -1)], np.nan))'):
    'whatever is read there is replaced by NaN',
  ('losses/nce', 'ReplaceComparisonOperator_Lt_LtE',
   'held = (places < len(bank)).sum(axis=1).max()', 'held = (places <= len(bank)).sum(axis=1).max()'):
    'a block too many, which adds nothing',
  ('losses/hardest', 'NumberReplacer', '_COLUMNS_AT_ONCE = 12', '_COLUMNS_AT_ONCE = 13'):
    'the same is found, by a group of columns more',
  ('memories/host_rows', 'NumberReplacer', "'entering': filled(swaps.entering, 0)}",
   "'entering': filled(swaps.entering, 1)}"):
    'where there is no swap, whatever would enter is dropped',
  ('memories/host_rows', 'NumberReplacer', 'self._forget(step - HOST_LAG - 1)',
   'self._forget(step - HOST_LAG - 0)'):
    'what left so long ago is in the store by then, too'}
