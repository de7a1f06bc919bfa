"""Faults that change nothing a user could see: (module, operator, line before, line after) -> why."""

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
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
  ('memories/store', 'NumberReplacer', '_DUMP_BLOCK = 16384  # Rows.', '_DUMP_BLOCK = 16383  # Rows.'):
    'the file is the same in whatever blocks it is written',
  ('memories/store', 'NumberReplacer', 'return np.zeros(0, self._record)',
   'return np.zeros( 1, self._record)'):
    'a process that keeps no row reads none',
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
    'what left so long ago is in the store by then, too',
  ('evals/linear', 'NumberReplacer', "keys = augment.view_keys(seed, epoch, batch['id'], 1)",
   "keys = augment.view_keys(seed, epoch, batch['id'], 0)"):
    'of such a view nothing is drawn from the keys'}
