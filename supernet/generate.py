"""Decoding: prefill and next tokens of sequences with placements of their own, in one batch, from one set of weights.

Shapes: R rows of a call, T new tokens of each, D hidden, V vocabulary. ``generate`` is for a list of prompts, ``stream`` for tokens as they
come; servers and benchmarks use ``States.join``, ``extend`` and ``States.leave`` themselves.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from supernet.decoder import Supernet
from supernet.state import States

Rng = np.random.Generator | torch.Generator

PREFILL = 2048
"""Tokens of prompts that go through the model in one call."""


@torch.inference_mode()
def extend(model: Supernet, states: States, rows: Sequence[int], tokens: Tensor, every: bool = False) -> Tensor:
    """Goes on with the next ``tokens`` [R, T] of ``rows``: float32 logits after the last [R, V], or after ``every`` one [R, T, V].

    The rows of a call have the same number of new tokens each, and any lengths and placements.
    """
    rows, T = tuple(rows), tokens.shape[1]
    states.reserve(T + max(states.lengths[row] for row in rows))
    x = model.embed(tokens.to(states.device))
    starts: dict[tuple[int, ...], int | Tensor] = {}
    for block, groups in zip(model.blocks, states.groups(rows), strict=True):
        normed = block.mixer_norm(x)
        mixed = torch.empty_like(x)
        for group in groups:
            if group.rows not in starts:
                starts[group.rows] = _start([states.lengths[row] for row in group.rows])
            if group.at is None:
                mixed = group.extend(block.mixers[group.letter], normed, starts[group.rows])
            else:
                mixed[group.at] = group.extend(block.mixers[group.letter], normed[group.at], starts[group.rows])
        x = x + mixed
        x = x + block.mlp(block.mlp_norm(x))
    for row in rows:
        states.lengths[row] += T
    return model.head(model.norm(x if every else x[:, -1])).float()


def _start(lengths: list[int]) -> int | Tensor:
    return lengths[0] if min(lengths) == max(lengths) else torch.tensor(lengths)


def prefill(model: Supernet, states: States, rows: Sequence[int], prompts: Sequence[Tensor], piece: int = PREFILL) -> Tensor:
    """Prompts [T of each] go into new rows; the logits after each, float32 [R, V].

    Prompts of one length share a call, as far as they have at most ``piece`` tokens together; a longer prompt takes several calls.
    """
    logits = torch.empty(len(rows), model.config.vocab, device=states.device)
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    while order:
        T = len(prompts[order[0]])
        some = [i for i in order if len(prompts[i]) == T][: max(1, piece // T)]
        order = order[len(some) :]
        for part in torch.stack([prompts[i] for i in some]).split(piece, 1):
            found = extend(model, states, [rows[i] for i in some], part)
        logits[some] = found
    return logits


def generate(
    model: Supernet,
    prompts: list[Tensor],
    placements: list[str],
    new_tokens: int,
    temperature: float = 0.0,
    rng: Rng | None = None,
    stop: Sequence[int] = (),
) -> list[Tensor]:
    """The tokens that follow each prompt, without the prompt: one int64 tensor of at most ``new_tokens`` on the CPU for each.

    ``prompts``: token ids, each [T] with T >= 1. ``placements``: one for each. ``temperature`` 0 takes the likeliest token, otherwise
    tokens are drawn from softmax(logits / temperature) with ``rng``. Every prompt has random numbers of its own, so its tokens depend on
    ``rng`` and its place in the list, not on the other prompts. A token of ``stop`` ends a sequence and is its last.
    Raises ValueError naming what does not fit.
    """
    found: list[list[int]] = [[] for _ in prompts]
    for i, token in stream(model, prompts, placements, new_tokens, temperature, rng, stop):
        found[i].append(token)
    return [torch.tensor(tokens, dtype=torch.int64) for tokens in found]


def stream(
    model: Supernet,
    prompts: list[Tensor],
    placements: list[str],
    new_tokens: int,
    temperature: float = 0.0,
    rng: Rng | None = None,
    stop: Sequence[int] = (),
    rows: int | None = None,
) -> Iterator[tuple[int, int]]:
    """The tokens of ``generate`` as they come: (which prompt, token). At most ``rows`` sequences (default: all) run at a time; where one
    ends, the next joins."""
    placements = check(model, prompts, placements, new_tokens, temperature, rng)
    if rows is not None and rows < 1:
        raise ValueError(f"rows is {rows}: at least one sequence has to run at a time")
    streams = own_streams(rng, len(prompts)) if temperature else [None] * len(prompts)
    ends, states = set(stop), States(model)
    waiting = list(reversed(range(len(prompts)))) if new_tokens else []
    running: dict[int, int] = {}  # prompt -> row
    left = [new_tokens] * len(prompts)
    last: dict[int, int] = {}
    while waiting or running:
        joining = [waiting.pop() for _ in range(min(len(waiting), (rows or len(prompts)) - len(running)))]
        batches = []
        if running:
            going = list(running)
            tokens = torch.tensor([[last[i]] for i in going])
            batches.append((going, extend(model, states, [running[i] for i in going], tokens)))
        if joining:
            new = [states.join(placements[i], len(prompts[i]) + new_tokens) for i in joining]
            batches.append((joining, prefill(model, states, new, [prompts[i] for i in joining])))
            running |= dict(zip(joining, new, strict=True))
        for going, logits in batches:
            for i, token in zip(going, pick(logits, temperature, [streams[i] for i in going]), strict=True):
                last[i] = token
                left[i] -= 1
                if not left[i] or token in ends:
                    states.leave(running.pop(i))
                yield i, token


def pick(logits: Tensor, temperature: float, streams: Sequence[np.random.Generator | None]) -> list[int]:
    """A token for each row of logits [R, V]: the likeliest at temperature 0, otherwise drawn with one number of the row's stream."""
    if not temperature:
        return logits.argmax(-1).tolist()
    below = distribution(logits, temperature).cumsum(-1)
    drawn = torch.tensor([[stream.random()] for stream in streams], dtype=torch.float64, device=logits.device) * below[:, -1:]
    return torch.searchsorted(below, drawn, right=True).clamp(max=logits.shape[-1] - 1)[:, 0].tolist()


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in float64, [..., V]."""
    return (logits.double() / temperature).softmax(-1)


def own_streams(rng: Rng, count: int) -> list[np.random.Generator]:
    """Independent streams of random numbers from one generator, numpy's or torch's."""
    if isinstance(rng, torch.Generator):
        rng = np.random.default_rng(torch.randint(2**62, (1,), generator=rng, device=rng.device).item())
    return [np.random.default_rng(seed) for seed in rng.integers(2**62, size=(count, 2))]


def check(model: Supernet, prompts: list[Tensor], placements: list[str], new_tokens: int, temperature: float, rng: Rng | None) -> list[str]:
    """The placements, parsed. Raises ValueError naming the argument that does not fit and what would."""
    if isinstance(placements, str) or len(placements) != len(prompts):
        given = "one string" if isinstance(placements, str) else f"{len(placements)} placements"
        raise ValueError(f"{len(prompts)} prompts and {given}: give a list with one placement for each prompt")
    for i, prompt in enumerate(prompts):
        if prompt.ndim != 1 or not len(prompt):
            raise ValueError(f"prompt {i} has shape {tuple(prompt.shape)}: give token ids [T], at least one")
        if not 0 <= int(prompt.min()) <= int(prompt.max()) < model.config.vocab:
            raise ValueError(f"prompt {i} has a token outside the model's vocabulary of {model.config.vocab}: use its own tokenizer")
    if new_tokens < 0:
        raise ValueError(f"new_tokens is {new_tokens}: give 0 or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: give 0 for the likeliest token, or a positive number")
    if temperature and rng is None:
        raise ValueError(f"temperature is {temperature} and rng is missing: pass numpy.random.default_rng(SEED)")
    return [model.parse(placement) for placement in placements]
