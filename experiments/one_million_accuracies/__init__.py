"""Instance accuracy and semantic accuracy over all runs: One-Million's Fig. 1b."""
from experiments.jobs import Experiment
from experiments.statistics import RisesWith

EXPERIMENT = Experiment(
  name='one_million_accuracies',
  claim='The more instances a network tells apart, the more classes it does.',
  source='One-Million, Fig. 1b',
  paper='“A strong positive correlation” of instance accuracy and linear accuracy (a picture).',
  variants=lambda scale: {},
  questions=(RisesWith('instance_top1', 'linear_top1'), RisesWith('probe_instance_top1', 'linear_top1'),
             RisesWith('probe_instance_top1', 'knn_top1')),
  measures=('instance_top1', 'probe_instance_top1', 'linear_top1', 'knn_top1'), pools=True)
