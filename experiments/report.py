"""``python -m experiments.report scale=...``: the report of the run that these options name, by ``analysis.report``."""

import sys

from analysis.report import main
from experiments.config import Config, run_dir
from experiments.entry import run


def report(config: Config) -> None:
    if main([str(run_dir(config))]):
        sys.exit(1)


if __name__ == "__main__":
    run(report)
