"""What trained a run, as far as its folder says: teacher, data, sampler, tokens; its losses over training."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.input.runs import describe, options
from analysis.table import Scores


def about(run: Path, scores: Scores) -> list[str]:
    """A short sentence each on teacher, data, sampler and training of a run directory; none on what its manifest.json and config.yaml do
    not say, so nothing at all for a file of scores."""
    if not run.is_dir():
        return []
    path = run / "manifest.json"
    known, config = json.loads(path.read_text()) if path.is_file() else {}, options(run)
    teacher, hashes, data = known.get("teacher") or {}, known.get("data") or {}, config.get("data") or {}
    said = []
    if source := teacher.get("source"):
        said.append(f"Teacher: {source}{_short(teacher.get('sha256'))}.")
    if data.get("kind"):
        where, tasks = data.get("path") or "", ", ".join(data.get("tasks") or [])
        words = [f"{data['kind']}{f' {where}' if where else ''}{f' ({tasks})' if tasks else ''}{_short(hashes.get('train'))}"]
        words += [f"{data['train']} training sequences of {data.get('length', '?')} tokens"] if data.get("train") else []
        said.append(f"Data: {', '.join(words)}.")
    if sampler := (config.get("distill") or {}).get("sampler"):
        stage = {"sft": ", then fine-tuned on presets", "cooled": ", cooled copy"}.get(config.get("stage", ""), "")
        said.append(f"Sampler: {sampler}{stage}.")
    trained, tokens = describe(scores, run)["trained_parameters"].iloc[0], float(scores.tokens[-1])
    if np.isfinite(trained):
        said.append(f"Training: {tokens:,.0f} tokens, {tokens / trained:.3g} per trained parameter (there are {trained:,.0f}).")
    return said


def _short(digest: str | None) -> str:
    return f" (sha256 {digest[:12]})" if digest else ""


def losses(run: Path) -> pd.DataFrame:
    """step, tokens, loss (nats) of every training step from metrics.jsonl, the latest row of a step that was trained twice; empty without
    one. A last line that was cut off by a kill is left out. ValueError, one line, for what is no record of a training."""
    path = run / "metrics.jsonl" if run.is_dir() else run
    nothing = pd.DataFrame(columns=["step", "tokens", "loss"])
    if not run.is_dir() or not path.is_file():
        return nothing
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            rows.append((int(row["step"]), int(row["tokens"]), float(row["loss"])))
        except (ValueError, KeyError, TypeError):
            if number < len(lines) - 1:
                raise ValueError(f"{path}: line {number + 1} holds no step, tokens and loss: delete that line") from None
    frame = pd.DataFrame(rows, columns=nothing.columns)
    return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)
