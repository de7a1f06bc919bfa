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
  'losses/dense': ('tests/losses/test_dense.py',),
  'hardware/local_rows': ('tests/hardware/test_local_rows.py',),
  'losses/known_gradient': ('tests/losses/test_partitioned.py',),
  'memories/instance_rows': ('tests/losses/test_partitioned.py',),
  'memories/memory': ('tests/oracle/test_oracle_sampled.py', 'tests/pretraining/test_training.py'),
  'memories/host': ('tests/memories/test_host_rows.py',),
  'memories/windowed_rows': ('tests/oracle/test_oracle_sampled.py', 'tests/oracle/test_oracle_float16.py'),
  'memories/bank': ('tests/methods/test_instdisc.py',),
  'memories/hardest_table': ('tests/oracle/test_oracle_one_million.py',),
  'memories/momentum_encoder': ('tests/memories/test_momentum_encoder.py',
                                'tests/oracle/test_oracle_momentum.py'),
  'memories/key_queue': ('tests/memories/test_key_queue.py', 'tests/oracle/test_oracle_momentum.py'),
  'optim': ('tests/test_optim.py',),
  'run/state': ('tests/test_optim.py', 'tests/pretraining/test_training.py',
                'tests/evals/test_finetune.py', 'tests/oracle/test_oracle_conic.py',
                'tests/oracle/test_oracle_float16.py'),
  'pretraining/training': ('tests/oracle/test_oracle_conic.py', 'tests/pretraining/test_training.py',
                           'tests/oracle/test_oracle_one_million.py', 'tests/methods/test_one_million.py',
                           'tests/pretraining/test_resumed.py', 'tests/pretraining/test_warm_start.py'),
  'run/loop': ('tests/oracle/test_oracle_conic.py', 'tests/pretraining/test_training.py',
               'tests/oracle/test_oracle_one_million.py'),
  'pretraining/train_step': ('tests/oracle/test_oracle_conic.py', 'tests/pretraining/test_training.py',
                             'tests/oracle/test_oracle_float16.py'),
  'views': ('tests/data/test_augment.py', 'tests/data/test_crops.py', 'tests/evals/test_finetune.py'),
  'memories/delayed': ('tests/memories/test_delayed.py',),
  'losses/partitioned': ('tests/losses/test_partitioned.py', 'tests/losses/test_fused_head.py'),
  'losses/fused_negatives': ('tests/losses/test_fused_head.py',),
  'losses/products': ('tests/losses/test_partitioned.py', 'tests/losses/test_fused_head.py'),
  'memories/fused_sgd': ('tests/losses/test_fused_head.py',),
  'losses/hardest': ('tests/losses/test_hardest.py',),
  'losses/hardest_tiles': ('tests/losses/test_hardest_tiles.py',),
  'losses/cells': ('tests/losses/test_hardest_tiles.py',),
  'memories/journal': ('tests/memories/test_journal.py', 'tests/memories/test_store.py',
                       'tests/memories/test_store_crash.py', 'tests/memories/test_store_damage.py'),
  'memories/row_file': ('tests/memories/test_store.py', 'tests/memories/test_store_crash.py',
                        'tests/memories/test_store_damage.py'),
  'memories/sealed': ('tests/memories/test_store_damage.py',),
  'losses/negatives': ('tests/losses/test_negatives.py', 'tests/losses/test_partitioned.py'),
  'losses/nce': ('tests/losses/test_nce.py', 'tests/methods/test_instdisc.py'),
  'memories/device_window': ('tests/memories/test_host_rows.py', 'tests/memories/test_device_window.py'),
  'losses/smoothing': ('tests/losses/test_partitioned.py',),
  'memories/row_store': ('tests/memories/test_store.py',),
  'memories/host_store': ('tests/memories/test_store.py', 'tests/memories/test_store_crash.py',
                          'tests/memories/test_store_damage.py', 'tests/memories/test_store_folder.py'),
  'memories/disk_store': ('tests/memories/test_store.py', 'tests/memories/test_store_crash.py',
                          'tests/memories/test_store_damage.py', 'tests/memories/test_store_folder.py'),
  'memories/store_folder': ('tests/memories/test_store_folder.py',),
  'memories/copied_folder': ('tests/memories/test_copied_folder.py',),
  'memories/store': ('tests/memories/test_store.py', 'tests/memories/test_store_crash.py',
                     'tests/memories/test_store_damage.py'),
  'memories/host_rows': ('tests/memories/test_host_rows.py',),
  'memories/window': ('tests/memories/test_window.py',),
  'data/augment': ('tests/data/test_augment.py',),
  'data/sampler': ('tests/data/test_sampler.py',),
  'evals/knn': ('tests/evals/test_knn.py',),
  'evals/linear': ('tests/evals/test_linear.py',),
  'methods/__init__': (_WALK,),
  'methods/align_uniform': ('tests/methods/test_align_uniform.py', *_walked('align_uniform')),
  'methods/method': ('tests/methods/test_byol.py', 'tests/methods/test_moco.py',
                   'tests/oracle/test_oracle_momentum.py'),
  'methods/byol': ('tests/methods/test_byol.py', 'tests/oracle/test_oracle_momentum.py'),
  'methods/co2': ('tests/methods/test_moco.py', *_walked('co2')),
  'methods/conic': ('tests/oracle/test_oracle_conic.py',),
  'methods/conic_s': ('tests/methods/test_conic_s.py', 'tests/oracle/test_oracle_sampled.py'),
  'methods/data_parallel': ('tests/methods/test_data_parallel.py', *_walked('data_parallel')),
  'methods/exemplar': ('tests/methods/test_chance.py', *_walked('exemplar')),
  'methods/inscon': ('tests/methods/test_inscon.py', *_walked('inscon', partitioned=True)),
  'methods/instance': ('tests/methods/test_validity.py', 'tests/methods/test_pic.py',
                       'tests/methods/test_chance.py', 'tests/oracle/test_oracle_conic.py'),
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
