"""Faults that change nothing a user could see: (module, operator, line before, line after) -> why."""

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
  ('losses', 'NumberReplacer', 'others = jax.nn.logsumexp(jax.nn.logsumexp(negatives, axis=2), axis=1)',
   'others = jax.nn.logsumexp(jax.nn.logsumexp(negatives, axis= 1), axis=1)'):
    'the same sum, queries first',
  ('data/augment', 'NumberReplacer', 'if spec.jitter > 0 and spec.strength > 0:',
   'if spec.jitter > 0 and spec.strength > -1:'):
    'at strength 0 no change has a range, and the loop makes no turn',
  ('views', 'NumberReplacer', 'jitter=0.0, grayscale=0.0, blur=0.0, solarise=0.0, overlap=0.0)',
   'jitter= -1.0, grayscale=0.0, blur=0.0, solarise=0.0, overlap=0.0)'):
    'a probability below 0 is as good as 0'}
