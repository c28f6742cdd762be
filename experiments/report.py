"""``python -m experiments.report scale=...``: the report of the run that these options name, by ``analysis.report``."""

from experiments.config import Config
from experiments.run import Run, Sweep
from experiments.runs.entry import run
from experiments.runs.records import status


def report(config: Config) -> None:
    """Write tables, figures and report.md beside the run's scores. Raises ValueError where the scores are absent or incomplete."""
    folder = Run.of(config).folder
    if not folder.is_dir():
        raise ValueError(f"no run in {folder}: run python -m experiments.distill and experiments.sweep with the same options")
    # Figures and statistics take seconds to import, which a plan need not wait for.
    from analysis.output.run_report import report as write_report
    from analysis.output.words import verdict
    from analysis.report import load_endpoints
    from analysis.stability.endpoints import ENDPOINTS
    from analysis.table import load_scores

    with status(folder, "report"):
        endpoints = load_endpoints(ENDPOINTS)
        tables = write_report(load_scores(folder, Sweep.of(config).costs), folder, endpoints, folder)
        print(f"{folder / 'report.md'}:", *verdict(tables, endpoints), sep="\n  ")


if __name__ == "__main__":
    run(report)
