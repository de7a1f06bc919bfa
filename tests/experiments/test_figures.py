"""What is read off the files of a run."""
import pytest

from experiments import figures


def report(step, loss, **more):
  return {'step': step, 'epoch': step / 10, 'loss': loss, 'loss_instance': 2 * loss, **more}


def test_the_last_report_counts_and_that_of_a_resumed_runs_first_step_does_not():
  reports = [report(1, 9.0), report(10, 8.0), report(20, 6.0), report(21, 5.0), report(23, 100.0),
             report(25, 4.0, probe_rankme=3.0, verdict='learning'),
             {'step': 25, 'epoch': 2.5, 'knn_top1': 0.5}]
  found = figures.of_training(reports, log_every=10)
  assert found['loss'] == pytest.approx((6.0 + 4.0) / 2)
  assert found['by_epoch'] == {'loss_instance': [16.0, 12.0, 8.0]}
  assert (found['probe_rankme'], found['verdict']) == (3.0, 'learning')


def test_accuracies_of_the_encoder_and_of_what_it_is_compared_with():
  summary = {'knn_top1': 0.5, 'feature_std': 0.1, 'random_init': {'knn_top1': 0.3, 'linear_top1': 0.2}}
  assert figures.of_evaluation(summary) == {
    'knn_top1': 0.5, 'random_init_knn_top1': 0.3, 'random_init_linear_top1': 0.2}
