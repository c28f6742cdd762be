"""``python -m experiments.sft scale=...``: fine-tuning of a distilled supernet on the answers, the placements being presets."""

from dataclasses import replace

from experiments.config import Config
from experiments.run import Run
from experiments.runs.entry import run
from experiments.training.finished import complete


def sft(config: Config) -> None:
    """Train what is missing of the checkpoints of a run's second stage. Killed at any moment, the same command continues."""
    run = Run.of(replace(config, stage="sft"))
    if complete(run):
        return
    from experiments.training.tuning import train  # Lightning takes seconds, which a finished run need not wait for

    train(run)


if __name__ == "__main__":
    run(sft)
