"""Run directories: where they are, what they say of themselves, which may be compared as replicates, and their scores on common axes."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from analysis.input.formats import columns_of, format_of, stem_of
from analysis.table import Scores, load_runs


def find_runs(results: Path) -> list[Path]:
    """Every run directory results/<scale>/<run-id> that has scores. ValueError if there is none."""
    runs = sorted({part.parents[2] for part in results.glob("*/*/scores/step-*/*.parquet")})
    if not runs:
        raise ValueError(f"no run directory with scores under {results.resolve()}: run the sweep first, or name a run or a file of scores")
    return runs


class Run(NamedTuple):
    """Scores, what was named to have them (a run directory or a file), and two folders: what lies beside the scores (proposals, fresh
    items), and where results go."""

    path: Path
    scores: Scores
    beside: Path
    folder: Path


def load(path: Path, costs: str | Path | None = None, out: Path | None = None) -> list[Run]:
    """The runs of a run directory (one) or of a file (one or several, sorted by name).

    Results go into the run directory; of a file into its folder, where that holds no other scores, else into a folder beside it that is
    called like the file; of several runs of one file, into folders there that are called like the runs. ``out`` is taken instead of
    the folder. Raises ValueError as ``load_runs``, and where two runs of a file would share a folder.
    """
    runs = load_runs(path, costs)
    beside = path if path.is_dir() else _beside(path)
    if len(runs) == 1:
        return [Run(path, runs[0], beside, out or beside)]
    names = [re.sub(r"[^\w.+=-]+", "_", scores.run).strip(".") or "_" for scores in runs]
    for n, name in enumerate(names):
        if name.casefold() in [other.casefold() for other in names[:n]]:
            raise ValueError(f"the results of two runs of {path} would share the folder {name}: rename run {runs[n].run}")
    return [Run(path, scores, beside / name, (out or beside) / name) for scores, name in zip(runs, names, strict=True)]


def _beside(path: Path) -> Path:
    """The folder of a file where no other one there holds scores; else one in it that is called like the file."""
    others = [other for other in path.resolve().parent.iterdir() if other.is_file() and other.name != path.name and format_of(other)]
    others = [other for other in others if {"placement", "item", "step"} <= set(columns_of(other))]
    if not others:
        return path.parent
    alike = stem_of(path) in [stem_of(other) for other in others]
    return path.parent / (stem_of(path) + format_of(path).replace(".", "-") * alike)


def describe(scores: Scores, run: str | Path) -> pd.DataFrame:
    """One row: what a run is made of. ``trained_parameters`` comes from the run directory's manifest.json, NaN where it says nothing."""
    known = manifest(run)
    return pd.DataFrame([{
        "scale": scores.scale, "run": scores.run, "seed": scores.seed, "layers": len(scores.placements[0]),
        "checkpoints": len(scores.steps), "n_placements": len(scores.placements), "n_items": len(scores.items), "steps": scores.steps[-1],
        "training_tokens": scores.tokens[-1], "trained_parameters": float(known.get("trained_parameters") or np.nan),
    }])  # fmt: skip


def manifest(run: str | Path) -> dict[str, Any]:
    """What manifest.json of a run directory says, {} where there is none. ValueError, one line, where it is not JSON."""
    path = Path(run) / "manifest.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): delete it, or run the command that wrote it again") from None


def noted(run: str | Path, last: int) -> list[str]:
    """The warnings that a run directory's manifest.json holds, and one where its scores end, at step ``last``, before its training does."""
    known = list(manifest(run).get("warnings", []))
    if last < (steps := training_steps(run)):
        known.append(f"The scores end at step {last}, the training at {steps}. So T, and every share of the training, is of step {last}. "
                     "Run the chain again, it goes on.")  # fmt: skip
    return known


def training_steps(run: str | Path) -> int:
    """Steps of the training by config.yaml of a run directory, without those of a cooled copy; 0 where it says nothing."""
    its = options(run)
    return int(its.get("sft" if its.get("stage") == "sft" else "distill", {}).get("steps") or 0)


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


class Recipe(NamedTuple):
    """What two trainings must share to be replicates, as digests; both '' where a run has no config.yaml, so that its origin is unknown."""

    same: str  # all that determines a training but seeds and teacher: shapes, data, distillation, second stage
    teacher: str  # the teacher, by its sha256 where a manifest tells it, and the seed of the data, whose items it makes


def recipe(run: str | Path) -> Recipe:
    """The recipe of a run. Runs of one recipe and teacher differ by the seed of the training; those of one recipe by the teacher, too."""
    its = options(run)
    if not its:
        return Recipe("", "")
    data, stage = dict(its.get("data") or {}), its.get("stage") or "distill"
    seed = data.pop("seed", None)
    parts = [its.get("supernet"), stage, its.get("model"), data, its["distill"], its.get("sft") if stage == "sft" else None]
    teacher = (manifest(run).get("teacher") or {}).get("sha256") or its.get("teacher")
    return Recipe(_digest(parts), _digest([teacher, seed]))


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def side_by_side(stability: pd.DataFrame, runs: pd.DataFrame, full: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The stability rows of several runs with common axes added.

    ``runs``: rows of ``describe``. Added: scale, seed, ``share_of_training`` (tokens / tokens at T), ``tokens_per_parameter`` (tokens /
    trained parameters) and ``relative_lo``, ``relative_hi``: the cost band as a share of the cost of all-FA, which ``full`` gives by run
    (default: one a layer).
    """
    common = runs[["scale", "run", "seed", "layers", "training_tokens", "trained_parameters"]]
    frame = stability.merge(common, on="run", how="left", validate="many_to_one")
    frame["share_of_training"] = frame["tokens"] / frame["training_tokens"]
    frame["tokens_per_parameter"] = frame["tokens"] / frame["trained_parameters"]
    whole = frame["layers"] if full is None else frame["run"].map(full)
    frame["relative_lo"], frame["relative_hi"] = frame["band_lo"] / whole, frame["band_hi"] / whole
    return frame.drop(columns=["layers", "training_tokens", "trained_parameters"])
