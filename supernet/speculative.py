"""Speculative decoding inside one checkpoint: a cheap placement drafts tokens, another verifies them all in one call.

The tokens are distributed exactly as the verifier's own (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1), whatever the draft; how
many drafts are accepted decides the speed alone. Both placements are rows of one ``States``, so their prompts go through in one call.

Going back after a rejection. Where a placement overwrites its state (recurrences, rings of a window), its row returns to a copy made after
the last accepted token it has seen, and the accepted tokens since are read again: a draft reads them together with the first step of the
next round, at no further call. All-FA only counts fewer tokens. Shapes: V vocabulary, k drafts of a round.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from supernet.decoder import Supernet
from supernet.generate import Rng, check, distribution, extend, own_streams, prefill
from supernet.mixers import MIXERS
from supernet.state import Mark, States


@dataclass(frozen=True)
class Round:
    """One verification: the accepted drafts and the verifier's own token after them."""

    tokens: list[int]  # accepted drafts, then one of the verifier
    drafted: int
    accepted: int


def speculate(
    model: Supernet, prompt: Tensor, draft: str, verify: str, new_tokens: int, k: int, temperature: float = 0.0, rng: Rng | None = None
) -> tuple[Tensor, int, int]:
    """(``new_tokens`` tokens that follow ``prompt`` [T] as ``verify`` would say them, drafts that were verified, drafts accepted).

    At temperature 0 the tokens are those of ``generate``, otherwise they have its distribution. ``k``: drafts of a round.
    Raises ValueError naming what does not fit.
    """
    tokens: list[int] = []
    drafted = accepted = 0
    for round_ in rounds(model, prompt, draft, verify, new_tokens, k, temperature, rng):
        tokens += round_.tokens
        drafted, accepted = drafted + round_.drafted, accepted + round_.accepted
    return torch.tensor(tokens, dtype=torch.int64), drafted, accepted


def acceptance(rounds: list[Round]) -> list[tuple[int, int]]:
    """By position in a round, first draft first: (times it was accepted, times it was drafted with all before it accepted)."""
    deepest = max((r.drafted for r in rounds), default=0)
    return [(sum(r.accepted > j for r in rounds), sum(r.drafted > j and r.accepted >= j for r in rounds)) for j in range(deepest)]


def rounds(
    model: Supernet, prompt: Tensor, draft: str, verify: str, new_tokens: int, k: int, temperature: float = 0.0, rng: Rng | None = None
) -> Iterator[Round]:
    """The rounds of ``speculate`` as they are done. The first has no drafts: it is the verifier's token after the prompt."""
    draft, verify = check(model, [prompt] * 2, [draft, verify], new_tokens, temperature, rng)
    if k < 1:
        raise ValueError(f"k is {k}: draft at least one token a round")
    if not new_tokens:
        return
    stream = own_streams(rng, 1)[0] if temperature else None
    states = States(model)
    room = len(prompt) + new_tokens + k + 1
    drafter, verifier = states.join(draft, room), states.join(verify, room)
    first = prefill(model, states, [drafter, verifier], [prompt, prompt])[1]
    last = _pick(_law(first, temperature), stream)
    yield Round([last], 0, 0)
    done, unseen = 1, [last]  # what the drafter has not read yet
    while done < new_tokens:
        ahead = min(k, new_tokens - done)  # the verifier's token comes on top, but the last round may end in a draft
        guesses, laws, mark = _draft(model, states, drafter, unseen, ahead, temperature, stream)
        before = _mark(states, verifier)
        logits = extend(model, states, [verifier], torch.tensor([[last, *guesses]]), every=True)[0]
        accepted, token = judge(guesses, laws, [_law(row, temperature) for row in logits], stream)
        kept = [*guesses[:accepted], token]
        _back(model, states, verifier, before, [last, *guesses[:accepted]], ahead - accepted)
        if accepted >= ahead - 1:  # the drafter has read accepted tokens only
            unseen = kept[ahead - 1 :]
        else:
            states.back(drafter, mark)
            unseen = kept
        last = token
        tokens = kept[: new_tokens - done]
        done += len(tokens)
        yield Round(tokens, ahead, accepted)


def judge(guesses: list[int], laws: list[Tensor], truths: list[Tensor], stream: np.random.Generator | None) -> tuple[int, int]:
    """(how many drafts are accepted, the token after them). ``laws``: the drafter's distributions [V] at each draft; ``truths``: the
    verifier's, one more.

    A draft x is accepted with probability min(1, p(x) / q(x)); the first that is not is replaced by a draw from max(p - q, 0), normed.
    Without a ``stream`` both are logits, and a draft is accepted where it is the verifier's likeliest token.
    """
    for i, (x, q, p) in enumerate(zip(guesses, laws, truths, strict=False)):
        if stream is None:
            if int(p.argmax()) != x:
                return i, int(p.argmax())
        elif stream.random() * q[x] >= p[x]:
            rest = (p - q).clamp(min=0)
            return i, _pick(rest if rest.sum() > 0 else p, stream)
    return len(guesses), _pick(truths[-1], stream)


def _draft(
    model: Supernet, states: States, row: int, unseen: list[int], count: int, temperature: float, stream: np.random.Generator | None
) -> tuple[list[int], list[Tensor], Mark | None]:
    """``count`` drafts after ``unseen``, their distributions, and the row as it was after ``unseen``, to go back to."""
    guesses, laws, mark, new = [], [], None, unseen
    for step in range(count):
        law = _law(extend(model, states, [row], torch.tensor([new]))[0], temperature)
        if not step and count > 1:
            mark = states.mark(row)
        laws.append(law)
        guesses.append(_pick(law, stream))
        new = [guesses[-1]]
    return guesses, laws, mark


def _counts(states: States, row: int) -> bool:
    """Whether going back is counting fewer tokens in every layer."""
    return not any(MIXERS[letter].overwrites(states.config, states.room) for letter in states.placements[row])


def _mark(states: States, row: int) -> Mark | None:
    return None if _counts(states, row) else states.mark(row)


def _back(model: Supernet, states: States, row: int, before: Mark | None, kept: list[int], rejected: int) -> None:
    """Leave the verifier's row after ``kept``, the accepted tokens of this round, ``rejected`` tokens earlier than it is."""
    if rejected and before is None:
        states.lengths[row] -= rejected
    elif rejected:
        states.back(row, before)
        extend(model, states, [row], torch.tensor([kept]))


def _law(logits: Tensor, temperature: float) -> Tensor:
    """[V] -> the distribution that tokens are drawn from, float64 on the CPU; at temperature 0 the logits themselves, to be maximised."""
    return distribution(logits, temperature).cpu() if temperature else logits


def _pick(law: Tensor, stream: np.random.Generator | None) -> int:
    if stream is None:
        return int(law.argmax())
    below = law.cumsum(-1)
    drawn = torch.tensor(stream.random(), dtype=torch.float64) * below[-1]
    return int(torch.searchsorted(below, drawn, right=True).clamp(max=len(law) - 1))
