"""Which tests guard which module: those that reach it, the quickest first."""

_WALK = 'tests/methods/test_all.py'


def _walked(name: str, partitioned: bool = False) -> tuple[str, ...]:
  """Of the tests that walk every method those of one; whether its state is split over devices."""
  tests = [f'{_WALK}::{test}[{name}]' for test in (
    'test_one_and_eight_devices_agree_and_keep_their_shardings',
    'test_a_step_that_overflows_changes_nothing_that_learns', 'test_saving_and_resuming_is_the_identity',
    'test_encode_and_embed_give_finite_features')]
  if partitioned:
    tests.append(f'{_WALK}::test_no_collective_of_the_whole_step_grows_with_what_is_kept[{name}-float32]')
  return tuple(tests)


# By file of conic_jax, without the ending.
GUARDS: dict[str, tuple[str, ...]] = {
  'losses': ('tests/test_losses.py',),
  'memory': ('tests/test_memory.py', 'tests/oracle/test_oracle_momentum.py'),
  'optim': ('tests/test_optim.py',),
  'state': ('tests/test_optim.py', 'tests/test_train.py', 'tests/oracle/test_oracle_conic.py'),
  'train': ('tests/oracle/test_oracle_conic.py', 'tests/test_train.py',
            'tests/oracle/test_oracle_one_million.py', 'tests/methods/test_one_million.py'),
  'train_step': ('tests/oracle/test_oracle_conic.py', 'tests/test_train.py'),
  'views': ('tests/data/test_augment.py', 'tests/data/test_crops.py', 'tests/evals/test_finetune.py'),
  'classifier/delayed': ('tests/classifier/test_delayed.py',),
  'classifier/full': ('tests/classifier/test_full.py',),
  'classifier/hardest': ('tests/classifier/test_hardest.py',),
  'classifier/journal': ('tests/classifier/test_journal.py', 'tests/classifier/test_store.py',
                         'tests/classifier/test_store_crash.py'),
  'classifier/negatives': ('tests/classifier/test_negatives.py', 'tests/classifier/test_full.py'),
  'classifier/noise': ('tests/classifier/test_noise.py', 'tests/methods/test_instdisc.py'),
  'classifier/sampled': ('tests/classifier/test_swap.py', 'tests/classifier/test_sampled.py'),
  'classifier/smoothing': ('tests/classifier/test_full.py',),
  'classifier/store': ('tests/classifier/test_store.py', 'tests/classifier/test_store_crash.py'),
  'classifier/swap': ('tests/classifier/test_swap.py',),
  'classifier/window': ('tests/classifier/test_window.py',),
  'data/augment': ('tests/data/test_augment.py',),
  'data/sampler': ('tests/data/test_sampler.py',),
  'evals/knn': ('tests/evals/test_knn.py',),
  'evals/linear': ('tests/evals/test_linear.py',),
  'methods/__init__': (_WALK,),
  'methods/align_uniform': ('tests/methods/test_align_uniform.py', *_walked('align_uniform')),
  'methods/base': ('tests/methods/test_byol.py', 'tests/methods/test_moco.py',
                   'tests/oracle/test_oracle_momentum.py'),
  'methods/byol': ('tests/methods/test_byol.py', 'tests/oracle/test_oracle_momentum.py'),
  'methods/co2': ('tests/methods/test_moco.py', *_walked('co2')),
  'methods/conic': ('tests/oracle/test_oracle_conic.py',),
  'methods/conic_s': ('tests/methods/test_conic_s.py', 'tests/oracle/test_oracle_sampled.py'),
  'methods/data_parallel': ('tests/methods/test_data_parallel.py', *_walked('data_parallel')),
  'methods/exemplar': ('tests/methods/test_chance.py', *_walked('exemplar')),
  'methods/inscon': ('tests/methods/test_inscon.py', *_walked('inscon', partitioned=True)),
  'methods/instance': ('tests/methods/test_pic.py', 'tests/methods/test_chance.py',
                       'tests/oracle/test_oracle_conic.py'),
  'methods/instdisc': ('tests/methods/test_instdisc.py', *_walked('instdisc', partitioned=True)),
  'methods/moco': ('tests/methods/test_moco.py', 'tests/methods/test_chance.py'),
  'methods/momentum': ('tests/methods/test_moco.py', 'tests/oracle/test_oracle_momentum.py'),
  'methods/network': ('tests/methods/test_moco.py', 'tests/methods/test_byol.py'),
  'methods/one_million': ('tests/methods/test_one_million.py', 'tests/oracle/test_oracle_one_million.py'),
  'methods/pic': ('tests/methods/test_pic.py',),
  'methods/simclr': ('tests/methods/test_simclr.py', *_walked('simclr')),
}


def files_of(module: str) -> list[str]:
  """The files of the tests that guard a module, each once."""
  return list(dict.fromkeys(test.partition('::')[0] for test in GUARDS[module]))
