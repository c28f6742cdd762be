"""``python -m experiments.sweep scale=...``: score placements on items at every checkpoint, part by part."""

from dataclasses import replace

from experiments.config import Config
from experiments.runs.entry import run
from experiments.runs.kept import restore
from experiments.sweeping.parts import score_missing
from experiments.sweeping.placements import select
from experiments.sweeping.weights import of_folder


def sweep(config: Config) -> None:
    """Score what ``placements`` asks for and the run (or the folder ``supernet``) lacks."""
    restore(config)
    if config.supernet:
        config = of_folder(config)
    if config.placements in ("proposed", "winners"):
        from experiments.sweeping.active import learn, score_winners  # surrogate and optimiser take seconds

        if config.placements == "proposed":
            learn(config)
        score_winners(config)
    else:
        score_missing(config, select(config))
        if config.stage == "distill" and config.distill.cooldown and not config.supernet and not config.steps:
            score_missing(replace(config, stage="cooled"), select(config))


if __name__ == "__main__":
    run(sweep)
