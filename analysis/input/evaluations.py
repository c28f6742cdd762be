"""What ``python -m experiments.evaluate`` has left in RUN/evaluation: a folder per task, laid out like a run."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from analysis.table import Scores, load_scores


class Evaluation(NamedTuple):
    """One task."""

    name: str
    folder: Path
    accuracy: Scores  # quality: score of each item, 0 to 1
    answers: Scores | None  # log-likelihood of the right answers, nats/token, of the same items; None where answers were judged as text
    teacher: np.ndarray | None  # [I] score of the frozen teacher, in the order of accuracy.items
    questions: pd.DataFrame  # [I] rows in that order: item, task, chance, length (0: none), depth (NaN: none)


def load_evaluations(run: Path, costs: str | None = None) -> list[Evaluation]:
    """The tasks of a run, by name. ValueError where there is none, or a table is not complete."""
    folders = sorted(path.parent for path in (run / "evaluation").glob("*/questions.parquet"))
    if not folders:
        raise ValueError(f"{run} has no evaluation: run python -m experiments.evaluate {run} tasks=...")
    return [load_evaluation(folder, costs) for folder in folders]


def load_evaluation(folder: Path, costs: str | None = None) -> Evaluation:
    """One of them."""
    accuracy = load_scores(folder, costs)
    answers = load_scores(folder / "loglik", costs) if any(folder.glob("loglik/scores/*/*.parquet")) else None
    asked = pd.read_parquet(folder / "questions.parquet", columns=["item", "task", "chance", "length", "depth"])
    if lacking := sorted(set(accuracy.items) - set(asked["item"])):
        raise ValueError(f"{folder / 'questions.parquet'} lacks the question {lacking[0]}, which was scored: delete {folder} and ask again")
    asked = asked.set_index("item").loc[accuracy.items].reset_index()
    parts = [pd.read_parquet(path, columns=["item", "score"]) for path in sorted(folder.glob("teacher/scores/*/*.parquet"))]
    scores = pd.concat(parts).astype({"item": str}).set_index("item")["score"] if parts else pd.Series(dtype=float)
    known = set(accuracy.items) <= set(scores.index)
    return Evaluation(folder.name, folder, accuracy, answers, scores.loc[accuracy.items].to_numpy(float) if known else None, asked)


def named_placements(run: Path, scores: Scores) -> dict[str, str]:
    """Placements of a table that have a name: all-FA, the presets of presets.yaml, the uniform ones."""
    layers = len(scores.placements[0])
    names = {"all-FA": "F" * layers} | {name: str(entry["placement"]) for name, entry in named_presets(run).items()}
    names |= {f"all-{letter}": letter * layers for letter in "SKG"}
    return {name: placement for name, placement in names.items() if placement in set(scores.placements)}


def named_presets(run: Path) -> dict[str, dict]:
    """The entries of RUN/presets.yaml by name; {} where there is none. ValueError for a file that holds something else."""
    path = run / "presets.yaml"
    if not path.is_file():
        return {}
    try:
        found = (yaml.safe_load(path.read_text()) or {}).get("presets") or {}
        return {str(name): dict(entry) | {"placement": str(entry["placement"])} for name, entry in found.items()}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} does not hold presets: delete it and run make presets") from None
