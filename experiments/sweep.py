"""``python -m experiments.sweep scale=...``: score placements on items at every checkpoint, part by part."""

from experiments.active import learn, score_winners
from experiments.config import Config
from experiments.entry import run
from experiments.parts import score_missing
from experiments.placements import select
from experiments.weights import of_folder


def sweep(config: Config) -> None:
    """Score what ``placements`` asks for and the run (or the folder ``supernet``) lacks."""
    if config.supernet:
        config = of_folder(config)
    if config.placements == "proposed":
        learn(config)
        score_winners(config)
    elif config.placements == "winners":
        score_winners(config)
    else:
        score_missing(config, select(config))


if __name__ == "__main__":
    run(sweep)
