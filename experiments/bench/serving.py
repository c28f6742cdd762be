"""A running vLLM server under load: mixes of placements against all-FA, then requests of all kinds with bad and aborted ones among them.

The server is ``python -m supernet.serving`` in its own environment on this machine, the model a random one, or that of a run. Every answer
is compared with the tokens of ``supernet.generate``.
"""

import json
import tempfile
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from experiments.runs.steps import whole_checkpoints
from supernet.checkpoint import load, save
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.mixers import MIXERS
from supernet.presets import cheapest, read_presets
from supernet.server import ask, running

PYTHON = Path(".venv-vllm/bin/python")
SHAPES = SupernetConfig(layers=8, hidden=128, ffn=256, heads=4, kv_heads=2, head_dim=32, vocab=512, window=64)
PRESETS = {"cheap": "GKGSGKGG", "middle": "FSKGFSKG", "dear": "FFSFFFSF"}
ROOM = 512  # tokens of the longest request
MEMORY = 64 << 20  # bytes for keys, values and states
AT_ONCE = 16  # clients
BAD = ({"placement": "FX"}, {"placement": "F" * 1000}, {"preset": "none"})
NAME = "model"


def run(quick: bool = False, where: Path | None = None) -> pd.DataFrame:
    """One row per mix: what came of its requests, their speed, and how many of the longest ones fit the memory by exact bytes.

    ``where``: a run (its last checkpoint) or a checkpoint folder, instead of the random model.
    """
    if not PYTHON.exists():
        raise SystemExit("error: no .venv-vllm: make .venv-vllm/.done makes the environment of vLLM")
    with tempfile.TemporaryDirectory() as temporary:
        folder = where or random_folder(Path(temporary) / "random")
        steps = whole_checkpoints(folder)
        model = load(steps[max(steps)] if steps else folder).eval().requires_grad_(False)
        presets, all_fa = read_presets(folder), "F" * model.config.layers
        if not presets:
            raise SystemExit(f"error: {folder} has no presets.yaml: give a run that has come to its report")
        cheap = cheapest(presets)
        mixes = {"all-FA": [all_fa], cheap: [presets[cheap]], "mixed": [all_fa, *presets.values()]}
        options = {"name": NAME, "max-model-len": ROOM, "kv-cache-memory-bytes": MEMORY}
        try:
            with running(PYTHON, folder, Path(temporary) / "server.log", options) as url:
                return table(url, model, mixes, *((16, 40, 16) if quick else (64, 200, 32)))
        except RuntimeError as error:
            raise SystemExit(f"error: {error}") from None


def random_folder(folder: Path) -> Path:
    """A checkpoint with random weights, and presets."""
    torch.manual_seed(0)
    model = Supernet(SHAPES)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    save(model, folder)
    (folder / "presets.yaml").write_text(yaml.safe_dump({"presets": {name: {"placement": p} for name, p in PRESETS.items()}}))
    return folder


def table(url: str, model: Supernet, mixes: dict[str, list[str]], number: int, load_requests: int, new: int) -> pd.DataFrame:
    """A row per mix of ``number`` requests of ``new`` tokens, and one of ``load_requests`` of all kinds."""
    rng, rows = np.random.default_rng(0), []
    vocab = model.config.vocab
    measure(url, model, requests_of(mixes["mixed"], AT_ONCE, 4, rng, vocab), "warm-up")
    for name, placements in mixes.items():
        rows.append(measure(url, model, requests_of(placements, number, new, rng, vocab), name))
    kinds = rng.choice(["good", "abort", "bad"], size=load_requests, p=[0.8, 0.1, 0.1]).tolist()
    rows.append(measure(url, model, requests_of(mixes["mixed"], load_requests, new, rng, vocab, kinds), "load"))
    found = pd.DataFrame(rows)
    found["ratio to all-FA"] = found["tokens/s"] / found["tokens/s"][0]
    held = {name: np.mean([request_bytes(model.config, p) for p in placements]) for name, placements in mixes.items()}
    found["fit in memory"] = [int(MEMORY / held.get(name, held["mixed"])) for name in found["mix"]]
    return found.round({"tokens/s": 1, "p50 s": 2, "p95 s": 2, "p99 s": 2, "ratio to all-FA": 2})


def requests_of(
    placements: list[str], number: int, new: int, rng: np.random.Generator, vocab: int, kinds: list[str] | None = None
) -> list[dict[str, Any]]:
    """Prompts of 4 to 200 tokens. ``kinds``: good, abort or bad."""
    prompts = [rng.integers(3, vocab, size=n).tolist() for n in rng.integers(4, 200, size=number)]
    return [
        {"prompt": prompt, "placement": placements[i % len(placements)], "new": new, "kind": kinds[i] if kinds else "good", "number": i}
        for i, prompt in enumerate(prompts)
    ]


def measure(url: str, model: Supernet, requests: list[dict[str, Any]], mix: str) -> dict[str, Any]:
    """Send the requests by AT_ONCE clients and say what came of them."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as clients:
        came = list(clients.map(lambda request: answer(url, request), requests))
    seconds = time.perf_counter() - begun
    good = [(request, tokens) for request, (tokens, _) in zip(requests, came, strict=True) if request["kind"] == "good"]
    wanted = generate(model, [torch.tensor(r["prompt"]) for r, _ in good], [r["placement"] for r, _ in good], requests[0]["new"])
    took = [its for request, (_, its) in zip(requests, came, strict=True) if request["kind"] == "good"]
    return {
        "mix": mix,
        "requests": len(requests),
        "equal": sum(tokens == right.tolist() for (_, tokens), right in zip(good, wanted, strict=True)),
        "aborted": sum(tokens == "aborted" for tokens, _ in came),
        "refused": sum(tokens == "refused" for tokens, _ in came),
        "lost": sum(tokens is None for tokens, _ in came),
        "tokens/s": sum(len(tokens) for _, tokens in good if isinstance(tokens, list)) / seconds,
        **{f"p{p} s": float(np.percentile(took, p)) for p in (50, 95, 99)},
    }


def answer(url: str, request: dict[str, Any]) -> tuple[list[int] | str | None, float]:
    """(tokens, "aborted", "refused", or None where nothing came; seconds)."""
    begun, kind = time.perf_counter(), request["kind"]
    arguments = BAD[request["number"] % len(BAD)] if kind == "bad" else {"placement": request["placement"]}
    try:
        with ask(url, NAME, request["prompt"], request["new"], arguments, stream=kind == "abort") as answer:
            if kind == "abort":
                answer.readline()
                found = "aborted"
            else:
                found = json.load(answer)["choices"][0]["token_ids"]
    except urllib.error.HTTPError as error:
        found = "refused" if error.code == 400 and kind == "bad" else None
    except (OSError, ValueError, KeyError):
        found = None
    return found, time.perf_counter() - begun


def request_bytes(config: SupernetConfig, placement: str) -> int:
    """What the longest request keeps, exactly."""
    shapes = [shape for letter in placement for shape in MIXERS[letter].state_shapes(config, ROOM, torch.float32)]
    return sum(prod(shape) * dtype.itemsize for shape, dtype in shapes)
