"""``python -m experiments.distill scale=...``: stochastic distillation of the supernet from its frozen teacher."""

from experiments.config import Config
from experiments.run import Run
from experiments.runs.entry import run
from experiments.training.finished import complete


def distill(config: Config) -> None:
    """Train what is missing of a run's checkpoints. Killed at any moment, the same command continues to the same numbers."""
    run = Run.of(config)
    if run.stage == "cooled":
        run = run.distilled  # which makes the cooled copy along
    if complete(run):
        return
    from experiments.training.distilling import train  # Lightning takes seconds, which a finished run need not wait for

    train(run)


if __name__ == "__main__":
    run(distill)
