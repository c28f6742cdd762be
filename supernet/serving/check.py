"""Does serving work on this machine? ``.venv-vllm/bin/python -m supernet.serving.check RUN_OR_FOLDER``, on a GPU or a CPU.

Starts the server, sends it at least eight placements at once, compares every token with ``supernet.generate``, measures the throughput of
all-FA, of one preset and of all placements mixed, and prints it. The exit code is 1 when something failed. Options that are not listed go
to the server, such as ``--dtype bfloat16`` or ``--enforce-eager``.
"""

import argparse
import sys
import tempfile
import time
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supernet import checkpoint
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import generate
from supernet.presets import ALL_FA, cheapest, read_presets
from supernet.reader import open_layers
from supernet.server import ask, models, running, tokens_of
from supernet.serving.__main__ import last_checkpoint

NAME = "check"
AT_LEAST = 8  # placements in one batch

TOLERANCE = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.5}
"""How far below the best a token's logit may lie where it is not the same: sums in another order break ties. In standard deviations of
the logits; of what bfloat16 rounds, by far the most is the hidden state after many layers."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m supernet.serving.check", description=__doc__, allow_abbrev=False)
    parser.add_argument("where", type=Path, metavar="RUN_OR_FOLDER")
    parser.add_argument("--teacher", type=Path, help="the teacher's folder of a run (default: found by its sha256)")
    parser.add_argument("--dtype", choices=list(TOLERANCE), help="of weights and states (default: as they are stored)")
    parser.add_argument("--requests", type=int, default=64, help="of each mix (default: 64)")
    parser.add_argument("--new-tokens", type=int, default=32, help="of each request (default: 32)")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of the longest prompt (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and random placements")
    given, others = parser.parse_known_args(argv)
    try:
        failed = check(given, others)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in failed:
        print(f"failed: {line}")
    print("serving failed here" if failed else "serving works here")
    return 1 if failed else 0


def check(given: argparse.Namespace, others: list[str]) -> list[str]:
    """What failed, a line each."""
    folder = last_checkpoint(given.where)
    reader = open_layers(folder, given.teacher)
    config, presets = reader.config, read_presets(folder)
    dtype = given.dtype or str(reader.tensors["embed.weight"].dtype).removeprefix("torch.")
    rng = np.random.default_rng(given.seed)
    chosen = placements_of(config, presets, rng)
    prompts = [rng.integers(3, config.vocab, size=n).tolist() for n in np.linspace(4, given.prompt_tokens, len(chosen)).astype(int)]
    options: dict[str, Any] = {"name": NAME, "max-model-len": given.prompt_tokens + given.new_tokens, "dtype": dtype}
    if given.teacher:
        options["teacher"] = given.teacher
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(f"device {device}, {dtype}, {config.layers} layers of {config.mixers}, {len(chosen)} placements; starting the server", flush=True)
    with (
        tempfile.TemporaryDirectory() as temporary,
        running(sys.executable, given.where, Path(temporary) / "log", options | extra(others)) as url,
    ):
        names = models(url)
        failed = [f"/v1/models lacks {NAME}:{preset}" for preset in presets if f"{NAME}:{preset}" not in names]
        failed += refusals(url, config)
        with ThreadPoolExecutor(len(chosen)) as clients:
            requests = zip(prompts, chosen.values(), strict=True)
            said = list(clients.map(lambda r: tokens_of(url, NAME, r[0], given.new_tokens, {"placement": r[1]}), requests))
        speeds = throughput(url, config, chosen, presets, given, rng)
    on = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.load(folder, given.teacher).requires_grad_(False).cast(getattr(torch, dtype)).float().to(on)
    equal, worst = compare(model, prompts, list(chosen.values()), said)
    print(f"\n{'placement':{config.layers + 2}}{'name':14}{'prompt':>7}{'equal':>9}{'worst gap':>11}")
    for (name, placement), prompt, same, gap in zip(chosen.items(), prompts, equal, worst, strict=True):
        print(f"{placement:{config.layers + 2}}{name:14}{len(prompt):7}{same:6}/{given.new_tokens:<2}{gap:11.4f}")
        if not gap <= TOLERANCE[dtype]:
            failed.append(
                f"{name} {placement}: a token's logit is {gap:.3g} standard deviations below the best, {TOLERANCE[dtype]} are allowed"
            )
    print(f"\n{'mix':20}{'requests':>9}{'tokens/s':>10}{'p50 s':>8}{'p99 s':>8}{'ratio':>7}")
    for mix, (rate, p50, p99) in speeds.items():
        print(f"{mix:20}{given.requests:9}{rate:10.1f}{p50:8.2f}{p99:8.2f}{rate / next(iter(speeds.values()))[0]:7.2f}")
    return failed


def extra(words: list[str]) -> dict[str, Any]:
    """Options of the server from words such as --a 1 --b: by name, None without a value."""
    found: dict[str, Any] = {}
    for i, word in enumerate(words):
        if word.startswith("--"):
            found[word[2:]] = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else None
    return found


def placements_of(config: SupernetConfig, presets: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Names and placements: all-FA, each mixer alone, presets, and random ones up to AT_LEAST; of a fixed model its own, often."""
    if config.fixed:
        return {f"fixed-{i}": config.fixed for i in range(AT_LEAST)}
    found = {f"all-{letter}": letter * config.layers for letter in config.mixers}
    if "F" in config.mixers:
        found = {ALL_FA: found.pop("all-F")} | found
    found |= {name: placement for name, placement in presets.items() if placement not in found.values()}
    while len(found) < AT_LEAST:
        found[f"random-{len(found)}"] = "".join(rng.choice(list(config.mixers), size=config.layers))
    return found


def refusals(url: str, config: SupernetConfig) -> list[str]:
    """Whether letters that do not fit are HTTP 400."""
    failed = []
    for letters in ("?" * config.layers, config.mixers[0] * (config.layers + 1)):
        try:
            ask(url, NAME, [5], 1, {"placement": letters}).close()
            failed.append(f"placement {letters} was not refused")
        except urllib.error.HTTPError as error:
            if error.code != 400:
                failed.append(f"placement {letters}: HTTP {error.code} instead of 400")
    return failed


def throughput(
    url: str, config: SupernetConfig, chosen: dict[str, str], presets: dict[str, str], given: argparse.Namespace, rng: np.random.Generator
) -> dict[str, tuple[float, float, float]]:
    """Tokens per second, and the median and 99th percentile of seconds per request, of each mix; the first mix is the measure."""
    mixes = {next(iter(chosen)): list(chosen.values())[:1]}
    if presets and not config.fixed:
        cheap = cheapest(presets)
        mixes[cheap] = [presets[cheap]]
    if len(set(chosen.values())) > 1:
        mixes["mixed"] = list(chosen.values())
    lengths = rng.integers(4, given.prompt_tokens + 1, size=given.requests)
    prompts = [rng.integers(3, config.vocab, size=n).tolist() for n in lengths]  # every mix has the same
    found = {}
    for name, its in mixes.items():

        def timed(i: int, its: list[str] = its) -> float:
            begun = time.perf_counter()
            tokens_of(url, NAME, prompts[i], given.new_tokens, {"placement": its[i % len(its)]})
            return time.perf_counter() - begun

        begun = time.perf_counter()
        with ThreadPoolExecutor(given.requests) as clients:
            took = list(clients.map(timed, range(given.requests)))
        rate = given.requests * given.new_tokens / (time.perf_counter() - begun)
        found[name] = (rate, *np.percentile(took, [50, 99]).tolist())
        print(f"{name}: {rate:.1f} tokens/s", flush=True)
    return found


@torch.inference_mode()
def compare(model: Supernet, prompts: list[list[int]], placements: list[str], said: list[list[int]]) -> tuple[list[int], list[float]]:
    """Of each answer: the tokens that are those of ``generate``, and the worst gap between the best logit after what was said and that of
    the next token said, in standard deviations of the logits, by whole forward passes without a cache."""
    device = model.embed.weight.device
    wanted = generate(model, [torch.tensor(p) for p in prompts], placements, max(map(len, said)))
    equal = [sum(a == b for a, b in zip(tokens, right.tolist(), strict=False)) for tokens, right in zip(said, wanted, strict=True)]
    worst = []
    for prompt, placement, tokens in zip(prompts, placements, said, strict=True):
        logits = model(torch.tensor([prompt + tokens[:-1]], device=device), placement)[0, len(prompt) - 1 :].float()
        gap = logits.amax(-1) - logits.gather(-1, torch.tensor(tokens, device=device)[:, None])[:, 0]
        worst.append(float((gap / logits.std(-1)).max()) if len(tokens) == len(logits) else float("inf"))
    return equal, worst


if __name__ == "__main__":
    sys.exit(main())
