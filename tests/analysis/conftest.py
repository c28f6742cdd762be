"""Small simulated runs. As a script it writes the shipped example: see results/example/README.md."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.table import Scores, write_part
from supernet.placement import Placement

LETTERS = "FSKG"
LOSS = np.array([0.0, 0.25, 0.3, 0.4])  # nats per token lost at T when one layer of five takes the mixer


def simulate(
    rng: np.random.Generator,
    layers: int = 4,
    n_placements: int = 40,
    n_items: int = 24,
    steps: tuple[int, ...] = (0, 10, 30, 100, 300, 1000),
    scale: str = "simulated",
    run: str = "sim-0",
    seed: int = 0,
    drift: float = 1.5,
    tokens_per_step: int = 4096,
) -> Scores:
    """A supernet whose layers each lose some likelihood per mixer. What a layer loses drifts until T; items add their own noise."""
    every = np.array(list(itertools.product(range(4), repeat=layers)))
    chosen = every[np.sort(rng.choice(len(every), size=min(n_placements, len(every)), replace=False))]
    final = LOSS * rng.uniform(0.2, 2.0, size=(layers, 4))
    early = LOSS * rng.uniform(0.2, 2.0, size=(layers, 4)) + 0.3 * (LOSS > 0)
    progress = np.log1p(steps) / np.log1p(steps[-1])
    difficulty = rng.normal(1.6, 0.3, size=n_items)
    taste = rng.normal(0, 0.15, size=(len(chosen), n_items))
    quality = np.empty((len(steps), len(chosen), n_items))
    for s, p in enumerate(progress):
        loss = final + drift * (1 - p) * early
        total = loss[np.arange(layers), chosen].sum(axis=1)
        quality[s] = -np.abs(difficulty + total[:, None] + taste + rng.normal(0, 0.05, size=taste.shape))
    placements = ["".join(LETTERS[m] for m in row) for row in chosen]
    order = np.argsort(placements)
    placements = [placements[i] for i in order]
    return Scores(
        scale=scale, run=run, seed=seed, steps=np.array(steps), tokens=np.array(steps) * tokens_per_step, placements=placements,
        cost=np.array([Placement(p).cost() for p in placements]), items=[f"item-{i:03d}" for i in range(n_items)],
        tasks=[("recall", "local", "state")[i % 3] for i in range(n_items)], quality=quality[:, order],
    )  # fmt: skip


def frame_of(scores: Scores, num_tokens: int = 32) -> pd.DataFrame:
    """The score table, one row per (step, placement, item)."""
    S, P, I = scores.quality.shape
    step, placement, item = (index.ravel() for index in np.indices((S, P, I)))
    return pd.DataFrame({
        "scale": scores.scale, "run": scores.run, "seed": scores.seed, "step": scores.steps[step], "tokens": scores.tokens[step],
        "placement": np.array(scores.placements)[placement], "item": np.array(scores.items)[item],
        "task": np.array(scores.tasks)[item], "logp": scores.quality.ravel() * num_tokens, "num_tokens": num_tokens,
    })  # fmt: skip


def write_run(scores: Scores, results: Path, parts: int = 2, trained_parameters: int | None = 100_000) -> Path:
    """A run directory as the sweep leaves it."""
    run = results / scores.scale / scores.run
    for step, frame in frame_of(scores).groupby("step"):
        for n, rows in enumerate(np.array_split(np.arange(len(frame)), parts)):
            write_part(frame.iloc[rows], run / "scores" / f"step-{step:06d}" / f"part-{n:04d}.parquet")
    pd.DataFrame({"placement": scores.placements, "source": "counts", "cost": scores.cost}).to_parquet(run / "placements.parquet")
    if trained_parameters:
        (run / "manifest.json").write_text(json.dumps({"trained_parameters": trained_parameters}))
    return run


def make_example() -> Scores:
    """The shipped example: 160 placements of 5 layers on 20 items at 7 checkpoints."""
    steps = (0, 10, 30, 100, 300, 700, 1000)
    rng = np.random.default_rng(20260101)
    return simulate(rng, layers=5, n_placements=160, n_items=20, steps=steps, scale="example", run="simulated")


@pytest.fixture(name="simulate", scope="session")
def simulate_fixture():
    return simulate


@pytest.fixture(name="frame_of", scope="session")
def frame_of_fixture():
    return frame_of


@pytest.fixture(name="write_run", scope="session")
def write_run_fixture():
    return write_run


@pytest.fixture
def example():
    return make_example


@pytest.fixture
def example_file() -> Path:
    return Path(__file__).parents[2] / "results" / "example" / "scores.parquet"


@pytest.fixture
def scores() -> Scores:
    return simulate(np.random.default_rng(0))


@pytest.fixture
def run_dir(tmp_path: Path, scores: Scores) -> Path:
    return write_run(scores, tmp_path / "results")


if __name__ == "__main__":
    write_part(frame_of(make_example()), Path(sys.argv[1]))
