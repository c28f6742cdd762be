"""A running vLLM server under load: mixes of placements against all-FA, then requests of all kinds with bad and aborted ones among them.

The server is ``python -m supernet.serving`` in its own environment on this machine, the model a random one. Every answer is compared with
the tokens of ``supernet.generate``.
"""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from supernet.checkpoint import save
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.mixers import MIXERS

PYTHON = Path(".venv-vllm/bin/python")
SHAPES = SupernetConfig(layers=8, hidden=128, ffn=256, heads=4, kv_heads=2, head_dim=32, vocab=512, window=64)
PRESETS = {"cheap": "GKGSGKGG", "middle": "FSKGFSKG", "dear": "FFSFFFSF"}
ROOM = 512  # tokens of the longest request
MEMORY = 64 << 20  # bytes for keys, values and states
AT_ONCE = 16  # clients
BAD = ({"placement": "FX"}, {"placement": "FFFF"}, {"preset": "none"})
START = 600  # seconds that a server may take to start


def run(quick: bool = False) -> pd.DataFrame:
    """One row per mix: what came of its requests, their speed, and how many of the longest ones fit the memory by exact bytes."""
    if not PYTHON.exists():
        raise SystemExit("error: no .venv-vllm: make .venv-vllm/.done makes the environment of vLLM")
    torch.manual_seed(0)
    model = Supernet(SHAPES).eval().requires_grad_(False)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    number, load, new = (16, 40, 16) if quick else (64, 200, 32)
    all_fa = "F" * SHAPES.layers
    mixes = {"all-FA": [all_fa], "cheap": [PRESETS["cheap"]], "mixed": [all_fa, *PRESETS.values()]}
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "random"
        save(model, folder)
        (folder / "presets.yaml").write_text(yaml.safe_dump({"presets": {name: {"placement": p} for name, p in PRESETS.items()}}))
        with server(folder) as url:
            measure(url, model, requests_of(mixes["mixed"], AT_ONCE, 4, rng), "warm-up")
            for name, placements in mixes.items():
                rows.append(measure(url, model, requests_of(placements, number, new, rng), name))
            kinds = rng.choice(["good", "abort", "bad"], size=load, p=[0.8, 0.1, 0.1]).tolist()
            rows.append(measure(url, model, requests_of(mixes["mixed"], load, new, rng, kinds), "load"))
    table = pd.DataFrame(rows)
    table["ratio to all-FA"] = table["tokens/s"] / table["tokens/s"][0]
    table["fit in memory"] = [int(MEMORY / np.mean([request_bytes(p) for p in mixes.get(name, mixes["mixed"])])) for name in table["mix"]]
    return table.round({"tokens/s": 1, "p50 s": 2, "p95 s": 2, "p99 s": 2, "ratio to all-FA": 2})


def requests_of(
    placements: list[str], number: int, new: int, rng: np.random.Generator, kinds: list[str] | None = None
) -> list[dict[str, Any]]:
    """Prompts of 4 to 200 tokens. ``kinds``: good, abort or bad."""
    prompts = [rng.integers(3, SHAPES.vocab, size=n).tolist() for n in rng.integers(4, 200, size=number)]
    return [
        {"prompt": prompt, "placement": placements[i % len(placements)], "new": new, "kind": kinds[i] if kinds else "good", "number": i}
        for i, prompt in enumerate(prompts)
    ]


def measure(url: str, model: Supernet, requests: list[dict[str, Any]], mix: str) -> dict[str, Any]:
    """Send the requests by AT_ONCE clients and say what came of them."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as clients:
        came = list(clients.map(lambda request: ask(url, request), requests))
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


def ask(url: str, request: dict[str, Any]) -> tuple[list[int] | str | None, float]:
    """(tokens, "aborted", "refused", or None where nothing came; seconds)."""
    begun, kind = time.perf_counter(), request["kind"]
    body = {"model": "random", "prompt": request["prompt"], "max_tokens": request["new"], "temperature": 0, "ignore_eos": True}
    arguments = BAD[request["number"] % len(BAD)] if kind == "bad" else {"placement": request["placement"]}
    body |= {"vllm_xargs": arguments, "return_token_ids": True, "stream": kind == "abort"}
    post = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(post, timeout=START) as answer:
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


def request_bytes(placement: str) -> int:
    """What the longest request keeps, exactly."""
    shapes = [shape for letter in placement for shape in MIXERS[letter].state_shapes(SHAPES, ROOM, torch.float32)]
    return sum(prod(shape) * dtype.itemsize for shape, dtype in shapes)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of a server of ``folder`` on a free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"host": "127.0.0.1", "port": port, "max-model-len": ROOM, "kv-cache-memory-bytes": MEMORY}
    command = [str(PYTHON), "-m", "supernet.serving", str(folder), *(word for k, v in options.items() for word in (f"--{k}", str(v)))]
    log = folder.parent / "server.log"
    with log.open("w") as said:
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, env=environment)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"error: the server did not start: {log.read_text()[-2000:]}") from None
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
