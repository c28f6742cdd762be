"""Which placements are drawn: a function of the options' own seed, evenly over cost bands where asked."""

import numpy as np
from hydra import compose, initialize_config_dir

from experiments.config import check
from experiments.run import Run, Sweep
from experiments.runs.entry import CONF
from experiments.sweeping.placements import select


def drawn(*options):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = check(compose("config", ["scale=l10-h64", *options]))
    return select(Sweep.of(config), Run.of(config).model)


def test_the_placement_seed_decides_what_is_drawn():
    first, again, other = (list(drawn("num_placements=40", f"placement_seed={seed}")["placement"]) for seed in (0, 0, 1))
    assert first == again and first != other


def test_a_cell_of_the_study_has_as_many_placements_in_every_band():
    table = drawn()
    band = np.minimum(((table["cost"] / 10 - 0.14) / 0.86 * 3).astype(int), 2)
    assert len(table) == 300 and min(np.bincount(band)) >= 95  # bands meet where costs are the same
