"""``python -m experiments.sweep scale=...``: score placements on items at every checkpoint, part by part."""

from experiments.config import Config
from experiments.run import Run, Sweep
from experiments.runs.entry import run
from experiments.runs.kept import restore
from experiments.sweeping.parts import score_missing
from experiments.sweeping.placements import select
from experiments.sweeping.weights import of_folder


def sweep(config: Config) -> None:
    """Score what ``placements`` asks for and the run (or the folder ``supernet``) lacks."""
    if config.supernet:
        config = of_folder(config)
    run, asked = Run.of(config), Sweep.of(config)
    restore(run)
    if asked.placements in ("proposed", "winners"):
        from experiments.sweeping.active import learn, score_winners  # surrogate and optimiser take seconds

        if asked.placements == "proposed":
            learn(run, asked)
        score_winners(run, asked)
    else:
        score_missing(run, asked, wanted := select(asked, run.model))
        if run.cooled and not run.supernet and not asked.steps:
            score_missing(run.cooled, asked, wanted)


if __name__ == "__main__":
    run(sweep)
