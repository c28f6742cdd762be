"""Benchmark: the speed of placements in decoding, each at the batch that fits a stated memory, against all-FA measured between them.

``python -m experiments.bench decode``, or ``python -m experiments.bench.decode --contexts 256 1024 --gib 0.25 --out FOLDER/NAME`` with
options, writes two tables. NAME.csv has placement, context, batch, tokens_per_s, ratio, ratio_lo, ratio_hi, roofline, device, kernels.
NAME-costs.csv has the cost of a layer of each mixer at each context by regression, with its held-out error:
``cost=measured:NAME-costs.csv@CONTEXT`` takes it.

Weights are random and states are filled with zeros in place of a prefill: neither changes what a step moves or computes. ``roofline`` is
predicted from this device's own bandwidth and matrix-product rate, never measured. On a CPU with one thread, seconds are its own time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis import roofline
from analysis.cost import regress
from analysis.output.one_line import Parser
from analysis.output.write import write_csv
from analysis.statistics.intervals import quantile
from experiments.bench.timing import pick, seconds
from experiments.machine import matmul_rate
from experiments.runs.kernels import first_that_works
from experiments.runs.records import cpu_name
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.generate import extend
from supernet.mixers import MIXERS
from supernet.ops import kernels
from supernet.placement import sample_counts
from supernet.state import States

SHAPES = SupernetConfig(layers=30, hidden=576, ffn=1536, heads=9, kv_heads=3, head_dim=64, vocab=49152, tied=True, rope_theta=1e5,
                        window=128)  # fmt: skip
"""Of scale=135m."""

LEVEL = 0.95

GIB = {"cpu": 0.09375, "cuda": 16.0}
"""Memory for the states of a batch; on a CPU, of one sequence of 4,096 tokens in all-FA."""

STEPS = {"cpu": 1, "cuda": 16}
"""Decode steps of a repeat."""


def run(quick: bool = False) -> pd.DataFrame:
    """For the command of all benchmarks: the table, written to results/decode unless ``quick``."""
    device = pick()
    contexts = (64, 256) if quick else (256, 1024, 4096) if device == "cpu" else (1024, 4096, 16384, 32768)
    gib = 0.02 if quick else GIB[device]
    shapes = SHAPES.replace(layers=4) if quick else SHAPES
    table = measure(shapes, device, contexts, gib, count=20 if quick else 24, repeats=2 if quick else 3, steps=STEPS[device])
    if not quick:
        write(table, Path("results") / "decode" / f"135m-{device}")
    return table


def write(table: pd.DataFrame, path: Path) -> None:
    """PATH.csv and PATH-costs.csv."""
    write_csv(table, path.with_name(f"{path.name}.csv"), digits=6)
    write_csv(costs(table), path.with_name(f"{path.name}-costs.csv"), digits=6)


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """Per context, one regression of time per token on mixer counts: context, mixer, cost (FA equivalents), seconds_per_token, r2, error
    (held-out, relative), rows. Ratios carry the speed, so that a machine that slows down meanwhile does not tilt it."""
    rows = []
    for context, part in table.groupby("context"):
        full = part.loc[part["placement"].str.strip("F") == "", "tokens_per_s"].iloc[0]
        found = regress(part.assign(tokens_per_second=part["ratio"] * full), np.random.default_rng(0))
        rows += [{"context": context, "mixer": mixer, "cost": found.coefficients[mixer], "seconds_per_token": found.seconds[mixer],
                  "r2": found.r2, "error": found.error, "rows": found.rows} for mixer in found.seconds]  # fmt: skip
    return pd.DataFrame(rows)


def sample(layers: int, count: int, rng: np.random.Generator) -> list[str]:
    """All-FA, the other three of one mixer, then placements by counts, which reach both ends."""
    chosen = dict.fromkeys(letter * layers for letter in "FSKG")
    while len(chosen) < count:
        chosen[str(sample_counts(layers, rng))] = None
    return list(chosen)


def sequence_bytes(config: SupernetConfig, placement: str, context: int, dtype: torch.dtype) -> int:
    """What decoding keeps of one sequence of ``context`` tokens."""
    of = {
        m: sum(int(np.prod(shape)) * kind.itemsize for shape, kind in MIXERS[m].state_shapes(config, context, dtype)) for m in config.mixers
    }
    return sum(of[letter] for letter in placement)


def measure(
    config: SupernetConfig, device: str, contexts: Sequence[int], gib: float, count: int = 24, repeats: int = 3, steps: int = 1,
    dtype: torch.dtype = torch.bfloat16, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """The table. ``gib``: for the states of one batch; at least one sequence runs. A repeat times ``steps`` steps of all-FA and of the
    placement, in turns; the ratio is the geometric mean over repeats, its interval that of the log (t, 95%)."""
    torch.manual_seed(seed)
    model = Supernet(config).to(device, dtype).eval()
    shapes, card = roofline.Shapes.of(asdict(config)), this_device(device, dtype, gib)
    placements = sample(config.layers, count, np.random.default_rng(seed))
    kind = str(dtype).removeprefix("torch.")
    way = first_that_works("auto", device, kind, (config.gdn_key_dim, config.gdn_value_dim, config.kda_dim), Path(".cache") / "kernels")
    kernels.use(way)
    used = f"{way}, {kind}, torch {torch.__version__}"
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_in_words()
    rows = []
    for context in contexts:
        batches = {p: max(1, int(gib * 2**30 // sequence_bytes(config, p, context, dtype))) for p in placements}
        base = placements[0]
        full = filled(model, base, context, batches[base])
        predicted = {p: roofline.step(shapes, p, card, context, batch=b, size=dtype.itemsize) for p, b in batches.items()}
        for placement in placements:
            own = filled(model, placement, context, batches[placement])
            ratios, rates = [], []
            for repeat in range(repeats + 1):  # the first warms up
                turns = [(full, batches[base]), (own, batches[placement])]
                speed = [batch / timed_step(model, states, context, steps) for states, batch in turns[:: 1 if repeat % 2 else -1]]
                theirs, mine = speed if repeat % 2 else speed[::-1]
                if repeat:
                    ratios.append(np.log(mine / theirs))
                    rates.append(mine)
            middle, half = np.mean(ratios), quantile(LEVEL, repeats - 1) * np.std(ratios, ddof=1) / np.sqrt(repeats)
            rows.append({
                "placement": placement, "context": context, "batch": batches[placement], "tokens_per_s": float(np.median(rates)),
                "ratio": np.exp(middle), "ratio_lo": np.exp(middle - half), "ratio_hi": np.exp(middle + half),
                "roofline": predicted[placement].tokens_per_second / predicted[base].tokens_per_second, "device": name, "kernels": used,
            })  # fmt: skip
            print(f"{context:6d} {placement} batch {batches[placement]:4d} ratio {rows[-1]['ratio']:.2f}", flush=True)
    return pd.DataFrame(rows)


def cpu_in_words() -> str:
    threads = torch.get_num_threads()
    return f"{cpu_name()}, " + ("1 thread, its own time" if threads == 1 else f"{threads} threads")


def filled(model: Supernet, placement: str, context: int, batch: int) -> States:
    """States of ``batch`` sequences with room for ``context`` tokens."""
    states = States(model)
    for _ in range(batch):
        states.join(placement, context)
    return states


@torch.inference_mode()
def timed_step(model: Supernet, states: States, context: int, steps: int) -> float:
    """Seconds of one step, from ``steps`` of them that end at ``context`` tokens."""
    rows = list(states.lengths)
    states.lengths.update(dict.fromkeys(rows, context - steps))
    token = torch.zeros(len(rows), 1, dtype=torch.int64, device=states.device)
    now = _clock(states)
    started = now()
    for _ in range(steps):
        token = extend(model, states, rows, token).argmax(-1, keepdim=True)
    return (now() - started) / steps


def _clock(states: States) -> Callable[[], float]:
    """On a CPU with one thread its own time, which others on the machine disturb least; else the wall clock, once a GPU has caught up."""
    if states.device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time

    def now() -> float:
        if states.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


def this_device(device: str, dtype: torch.dtype, gib: float) -> roofline.Device:
    """Measured bandwidth of reading 256 MiB and rate of matrix products; the memory is the stated one, which batches here are given by."""
    data = torch.ones(2**26, dtype=torch.float32, device=device)
    return roofline.Device(data.nbytes / seconds(data.sum, device), matmul_rate(device, dtype), gib * 2**30)


def main() -> None:
    parser = Parser(prog="python -m experiments.bench.decode", description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096], help="tokens")
    parser.add_argument("--gib", type=float, default=GIB[pick()], help="memory for the states of a batch")
    parser.add_argument("--placements", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS[pick()], help="decode steps of a repeat")
    parser.add_argument("--out", type=Path, default=Path("results") / "decode" / f"135m-{pick()}", metavar="FOLDER/NAME")
    asked = parser.parse_args()
    if min(asked.contexts) <= asked.steps or asked.repeats < 2 or asked.gib <= 0:
        parser.error(f"give contexts above --steps {asked.steps}, 2 repeats or more, and a positive --gib")
    write(measure(SHAPES, pick(), asked.contexts, asked.gib, asked.placements, asked.repeats, asked.steps), asked.out)


if __name__ == "__main__":
    main()
