"""What the fast paths of a CPU gain, old and new in one run: delta rule, KL, sweep, training step, and transformers beside our own sweep.

One thread; CPU seconds of that thread, the least of several, so that other processes on the machine disturb little.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from experiments.bench.distillation import Steps, shapes
from experiments.bench.token_mixing import delta_way
from experiments.runs.records import cpu_name, write_text
from supernet import scoring
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.ops import kernels, losses
from supernet.placement import exhaustive
from supernet.scoring import Item, score

TABLE = Path("docs/benchmarks.md")


def run(quick: bool = False) -> pd.DataFrame:
    """Columns: what, old, new, old s, new s, ratio. ``quick`` takes 4 of the 30 layers of 135m.

    What is at 135m is in bfloat16 where the CPU has instructions for it, else in float32.
    """
    dtype = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    layers = 4 if quick else 30
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [*delta_rule(), kl(dtype), tiny_sweep(), *language_sweep(layers, dtype), training_step(layers, dtype)]
    finally:
        torch.set_num_threads(before)
        kernels.use("torch")
    table = pd.DataFrame(rows, columns=["what", "old", "new", "old s", "new s"])
    return table.assign(ratio=table["old s"] / table["new s"])


def write_table(quick: bool = False) -> None:
    """Measure and write ``docs/benchmarks.md``, with the machine and its load."""
    load = os.getloadavg()[0]
    rows = [f"| {r.what} | {r.old} | {r.new} | {r[4]:.4g} | {r[5]:.4g} | {r.ratio:.2f} |" for r in run(quick).itertuples()]
    amx = "with" if torch.cpu._is_amx_tile_supported() else "without"
    text = f"""# Speed

Made by `python -m experiments.bench table{" --quick" * quick}`: old and new in one run, CPU seconds of one thread.
{cpu_name()}, {os.cpu_count()} cores, {amx} AMX, torch {torch.__version__}; load average when it began: {load:.1f}.
Other benchmarks (`python -m experiments.bench NAME`) print their tables: see `--help`.

| what | old | new | old s | new s | ratio |
| --- | --- | --- | --- | --- | --- |
""" + "\n".join(rows) + "\n"  # fmt: skip
    write_text(TABLE, text)
    print(text)


def in_turn(old: Callable[[], object], new: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The least CPU time of this thread of each, called in turn after once to warm up: what disturbs the machine disturbs both."""
    times = []
    for _ in range(rounds + 1):
        for function in (old, new):
            start = time.thread_time()
            function()
            times.append(time.thread_time() - start)
    return min(times[2::2]), min(times[3::2])


def delta_rule() -> Iterator[tuple]:
    """Forward without gradient, and backward alone, of both decays, at the shapes that a sweep calls."""
    for scale, dim, batch, tokens, heads in (("tiny", 32, 32, 63, 2), ("135m", 64, 8, 255, 9)):
        for name, channels in (("KDA", dim), ("GDN", 1)):
            random = torch.Generator().manual_seed(0)
            q, k, v = (torch.randn(batch, tokens, heads, dim, generator=random) for _ in range(3))
            g = -0.1 * torch.rand(batch, tokens, heads, channels, generator=random)
            beta = torch.rand(batch, tokens, heads, generator=random)
            inputs = [nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1), v, g, beta]
            ways = [delta_way(way) for way in ("torch", "numba")]
            with torch.inference_mode():
                forward = in_turn(*(partial(way, *inputs) for way in ways), 40)
            leaves = [x.requires_grad_() for x in inputs]
            losses_of = [way(*leaves).sum() for way in ways]
            backward = in_turn(*(partial(torch.autograd.grad, loss, leaves, retain_graph=True) for loss in losses_of), 20)
            for part, seconds in (("forward", forward), ("backward", backward)):
                yield f"delta rule, {name}, {scale}, {part}", "torch, chunked", "numba", *seconds


@contextmanager
def recomputed_kl() -> Iterator[None]:
    """The KL as it was: autograd, chunks computed again in the backward pass."""
    kept, losses.frozen = losses.frozen, lambda *_: False
    try:
        yield
    finally:
        losses.frozen = kept


def kl(dtype: str) -> tuple:
    c, random = shapes("135m"), torch.Generator().manual_seed(0)
    head = nn.Linear(c.hidden, c.vocab, bias=False).to(getattr(torch, dtype)).requires_grad_(False)
    student, teacher = (torch.randn(1, 768, c.hidden, generator=random) for _ in range(2))
    mask = torch.ones(1, 768, dtype=torch.bool)
    student.requires_grad_()

    def both() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            total = sum(losses.kl_losses(student, teacher, head, head, mask))
        torch.autograd.grad(total, student)

    def old() -> None:
        with recomputed_kl():
            both()

    return f"KL both ways with gradient, 135m, 768 tokens, {dtype}", "recomputed chunks", "one pass by blocks", *in_turn(old, both, 3)


def model_of(config: SupernetConfig, dtype: torch.dtype) -> Supernet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Supernet(config).eval().cast(dtype)


def items_of(count: int, tokens: int, prompt: int, vocab: int) -> list[Item]:
    rng = np.random.default_rng(0)
    return [Item(f"item-{i}", "random", torch.from_numpy(rng.integers(vocab, size=tokens)), prompt) for i in range(count)]


def sweep_by(way: str, *arguments: object) -> None:
    kernels.use(way)
    score(*arguments, 1 << 30)


@contextmanager
def whole_last_layer() -> Iterator[None]:
    """The sweep as it was: the last layer's mixers at all tokens, whether a target needs them or not."""
    kept, scoring._first = scoring._first, lambda *_: 0
    try:
        yield
    finally:
        scoring._first = kept


def old_and_new(*arguments: object) -> tuple[str, str, float, float]:
    """Names and seconds of the sweep as it was, in torch, and as it is."""

    def old() -> None:
        with whole_last_layer():
            sweep_by("torch", *arguments)

    return "torch, whole last layer", "numba in one pass", *in_turn(old, partial(sweep_by, "numba", *arguments), 6)


def tiny_sweep() -> tuple:
    config = shapes("tiny")
    arguments = model_of(config, torch.float32), list(exhaustive(config.layers)), items_of(8, 64, 32, config.vocab)
    return "sweep, tiny, all placements", *old_and_new(*arguments)


def language_sweep(layers: int, dtype: str) -> Iterator[tuple]:
    """At 135m: three random placements and all-FA; then all-FA alone beside transformers' own forward pass and log-softmax."""
    config = shapes("135m").replace(layers=layers)
    model, items = model_of(config, getattr(torch, dtype)), items_of(4, 256, 128, config.vocab)
    rng = np.random.default_rng(0)
    placements = ["F" * layers, *("".join(rng.choice(list(config.mixers), layers)) for _ in range(3))]
    at = f"135m, {dtype}, {layers} layers"
    yield f"sweep, {at}, 4 placements", *old_and_new(model, placements, items)
    from transformers import LlamaConfig, LlamaForCausalLM

    peer = LlamaForCausalLM(LlamaConfig(
        vocab_size=config.vocab, hidden_size=config.hidden, intermediate_size=config.ffn, num_hidden_layers=layers,
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, head_dim=config.head_dim,
    )).to(getattr(torch, dtype)).eval()  # fmt: skip
    tokens, targets = torch.stack([i.tokens[:-1] for i in items]), torch.stack([i.tokens[128:] for i in items])

    @torch.inference_mode()
    def theirs() -> Tensor:
        logits = peer(tokens, logits_to_keep=targets.shape[1], use_cache=False).logits
        return nn.functional.cross_entropy(logits.float().mT, targets, reduction="none").sum(1)

    seconds = in_turn(theirs, partial(sweep_by, "numba", model, placements[:1], items), 6)
    yield f"score of all-FA, {at}, 4 items", "transformers", "our sweep", *seconds


def training_step(layers: int, dtype: str) -> tuple:
    """Teacher, student of mixed layers, three losses, backward, AdamW: 3 sequences of 256 tokens, as ``scale=135m`` trains."""
    old, new = (Steps(shapes("135m").replace(layers=layers), 3, 256, "cpu", getattr(torch, dtype)) for _ in range(2))

    def before() -> None:
        kernels.use("torch")
        with recomputed_kl():
            old.step()

    def now() -> None:
        kernels.use("numba")
        new.step()

    names = "torch, recomputed KL", "numba, blocked KL"
    return f"distillation step, 135m, {dtype}, {layers} layers", *names, *in_turn(before, now, 2)
