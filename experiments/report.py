"""``python -m experiments.report scale=...``: the report of the run that these options name, by ``analysis.report``."""

from analysis.report import write_report
from experiments.config import Config, run_dir
from experiments.entry import run


def report(config: Config) -> None:
    write_report(run_dir(config))


if __name__ == "__main__":
    run(report)
