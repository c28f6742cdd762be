"""Run directories: where they are, what they say of themselves, which may be compared as replicates, and their scores on common axes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.table import Scores


def find_runs(results: Path) -> list[Path]:
    """Every run directory results/<scale>/<run-id> that has scores. ValueError if there is none."""
    runs = sorted({part.parents[2] for part in results.glob("*/*/scores/step-*/*.parquet")})
    if not runs:
        raise ValueError(f"no run directory with scores under {results.resolve()}: run the sweep first, or name a run or a file of scores")
    return runs


def describe(scores: Scores, run: str | Path) -> pd.DataFrame:
    """One row: what a run is made of. ``trained_parameters`` comes from the run directory's manifest.json, NaN where it says nothing."""
    manifest = Path(run) / "manifest.json"
    try:
        known = json.loads(manifest.read_text()) if manifest.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{manifest} is not valid JSON ({error}): delete it, or run the command that wrote it again") from None
    return pd.DataFrame([{
        "scale": scores.scale, "run": scores.run, "seed": scores.seed, "layers": len(scores.placements[0]),
        "checkpoints": len(scores.steps), "n_placements": len(scores.placements), "n_items": len(scores.items), "steps": scores.steps[-1],
        "training_tokens": scores.tokens[-1], "trained_parameters": float(known.get("trained_parameters") or np.nan),
    }])  # fmt: skip


def options(run: str | Path) -> dict[str, Any]:
    """What config.yaml of a run directory says, {} where there is none. ValueError, one line, on a file that is not what it should be."""
    path = Path(run) / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict) or (config and "sampler" not in config.get("distill", {})):
        raise ValueError(f"{path} is not a run's configuration: delete it, or run the command that wrote it again")
    return config


def family(run: str | Path) -> str:
    """Which runs may be compared as replicates: the sampler of the training (local, counts, ...), "-sft" after the second stage,
    "supernet" for a checkpoint that was given; "" for scores without a config.yaml, whose origin is not known."""
    config = options(run)
    if not config:
        return ""
    if config.get("supernet"):
        return "supernet"
    return config["distill"]["sampler"] + ("-sft" if config.get("stage") == "sft" else "")


def side_by_side(stability: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The stability rows of several runs with common axes added.

    ``runs``: rows of ``describe``. Added: scale, seed, ``share_of_training`` (tokens / tokens at T), ``tokens_per_parameter`` (tokens /
    trained parameters) and ``relative_lo``, ``relative_hi``: the cost band as a share of the cost of all-FA.
    """
    common = runs[["scale", "run", "seed", "layers", "training_tokens", "trained_parameters"]]
    frame = stability.merge(common, on="run", how="left", validate="many_to_one")
    frame["share_of_training"] = frame["tokens"] / frame["training_tokens"]
    frame["tokens_per_parameter"] = frame["tokens"] / frame["trained_parameters"]
    frame["relative_lo"], frame["relative_hi"] = frame["band_lo"] / frame["layers"], frame["band_hi"] / frame["layers"]
    return frame.drop(columns=["layers", "training_tokens", "trained_parameters"])
