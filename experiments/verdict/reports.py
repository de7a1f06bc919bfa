"""Keeps what the verdict reads of a run, in RUN/reports.json: `python -m experiments.verdict.reports RUN`."""
import argparse
import json
from pathlib import Path

from experiments.figures import read_reports

FIELDS = ('step', 'epoch', 'feature_std', 'loss_share', 'knn_top1', 'knn_top1_random', 'knn_top1_pixels')


def main() -> None:
  """Reads metrics.jsonl and config.json."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('run', type=Path)
  folder = parser.parse_args().run
  kept = [{field: value for field, value in report.items()
           if field in FIELDS or field.startswith('probe_')} for report in read_reports(folder)]
  config = json.loads((folder / 'config.json').read_text())
  judged_by = {field: value for field, value in config.items() if field not in ('run', 'data')}
  (folder / 'reports.json').write_text(json.dumps({'reports': kept, 'judged_by': judged_by}))


if __name__ == '__main__':
  main()
