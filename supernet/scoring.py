"""The sweep engine: scores many placements on many items layer by layer, evaluating every distinct prefix of placements once.

Two placements that agree on their first l layers share the hidden state after them. So all placements advance together: at each layer
the prefixes that take the same mixer go through it in large calls, and only that layer's weights are needed. Shapes: P placements,
n items, m items of a tile, T tokens, D hidden, B prefixes of one call.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from inspect import signature

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.config import SupernetConfig
from supernet.decoder import Block, Supernet
from supernet.ops.kernels import head_loss
from supernet.size import layer_flops

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of one call of a mixer: on a CPU its temporaries should stay in the cache, a GPU wants to be filled."""

PADDING = 1.25
"""Longest over shortest item of a tile at most: its items are padded to the longest."""

LOGITS = 1 << 22
"""Logits that are held at once, as float32 and with their log-probabilities; in one pass three times as many take as much."""


@dataclass(frozen=True)
class Item:
    """One sequence: a prompt and the teacher's trace. The score of a placement on it is the log-likelihood of the trace."""

    name: str
    task: str
    tokens: Tensor  # [T] int64, prompt then trace
    prompt: int  # tokens of the prompt: token t is scored for prompt <= t < T


@dataclass(frozen=True)
class Trie:
    """The distinct prefixes of some placements."""

    placements: list[str]  # [P], distinct
    levels: list[list[str]]  # levels[l]: the distinct prefixes of l letters, those with the same continuations side by side
    next_letters: dict[str, str]  # the letters that follow a prefix

    @property
    def prefixes(self) -> int:
        """Distinct prefixes of at least one letter: the least number of layer evaluations that an item can cost."""
        return sum(map(len, self.levels[1:]))

    @property
    def slots(self) -> int:
        """Hidden states that live at once. Every prefix has a continuation, so levels only grow; the last level is scored, not kept."""
        return len(self.levels[-2])


@dataclass(frozen=True)
class Counts:
    """What was done. ``layer_evaluations == prefixes * items`` when nothing was evaluated twice."""

    prefixes: int
    items: int
    layer_evaluations: int  # one per prefix and item, as counted while running
    flops: float  # of the items' own tokens, padding left out

    def __add__(self, other: "Counts") -> "Counts":
        """Two chunks of items of one sweep."""
        return Counts(self.prefixes, self.items + other.items, self.layer_evaluations + other.layer_evaluations, self.flops + other.flops)


def build_trie(config: SupernetConfig, placements: list[str]) -> Trie:
    """The trie of distinct placements of one model. ValueError names a placement that does not fit or comes twice."""
    if not placements:
        raise ValueError("there are no placements to score: give at least one")
    twice = [p for p, count in Counter(placements).items() if count > 1]
    if twice:
        raise ValueError(f"placement {twice[0]} is listed more than once: give each placement once")
    following: dict[str, set[str]] = {}
    for p in placements:
        config.placement(p)
        for layer, letter in enumerate(p):
            following.setdefault(p[:layer], set()).add(letter)
    next_letters = {prefix: "".join(c for c in config.mixers if c in letters) for prefix, letters in following.items()}
    levels = [sorted((p for p in next_letters if len(p) == layer), key=lambda p: (next_letters[p], p)) for layer in range(config.layers)]
    return Trie(list(placements), [*levels, list(placements)], next_letters)


def plan_chunks(
    config: SupernetConfig, trie: Trie, items: list[Item], memory_bytes: int, dtype: torch.dtype, device: str = "cpu", weights: int = 0
) -> list[list[int]]:
    """Split items into chunks whose sweep keeps within ``memory_bytes``: indices into ``items``, shortest items first.

    ``weights`` bytes of the budget are taken already (0: the weights are not part of it). A function of shapes and budget alone, so that
    a sweep that was killed finds the same chunks again. Raises ValueError, naming the smallest budget that works, when one item does not
    fit.
    """
    for item in items:
        if not 1 <= item.prompt < len(item.tokens):
            raise ValueError(f"item {item.name} has {len(item.tokens)} tokens and a prompt of {item.prompt}: "
                             "give at least one token of prompt and one to score")  # fmt: skip
    order = sorted(range(len(items)), key=lambda i: len(items[i].tokens))
    if not order:
        return []

    def needed(chunk: list[int]) -> int:
        lengths = [len(items[i].tokens) - 1 for i in chunk]
        padded = sum(len(tile) * lengths[tile[-1]] for tile in _tile(lengths, BATCH_TOKENS[device]))
        return weights + padded * trie.slots * config.hidden * dtype.itemsize + scratch_bytes(config, lengths[-1], device)

    if needed(order[-1:]) > memory_bytes:
        raise ValueError(f"a memory budget of {memory_bytes} bytes does not hold one item of {len(items[order[-1]].tokens)} tokens for "
                         f"{len(trie.placements)} placements: give at least {needed(order[-1:])} bytes")  # fmt: skip
    chunks: list[list[int]] = []
    for i in order:
        if chunks and needed([*chunks[-1], i]) <= memory_bytes:
            chunks[-1].append(i)
        else:
            chunks.append([i])
    return chunks


def scratch_bytes(config: SupernetConfig, tokens: int, device: str) -> int:
    """A bound on the temporaries of one call of a block or of the head, in bytes, for items of at most ``tokens``."""
    widest = max(config.heads * config.head_dim, config.kda_heads * config.kda_dim, config.gdn_value_heads * config.gdn_value_dim)
    per_token = 4 * max(60 * widest, 4 * config.ffn) + 12 * config.hidden
    batch = max(BATCH_TOKENS[device], tokens)
    return batch * per_token + 3 * 4 * max(min(LOGITS, batch * config.vocab), config.vocab)


def score(
    model: Supernet,
    placements: list[str],
    items: list[Item],
    memory_bytes: int,
    block_at: Callable[[int], Block] | None = None,
) -> tuple[np.ndarray, Counts]:
    """Log-likelihood in nats, summed over each item's target tokens, float64 [P, n]; and what was done. See ``score_chunk``."""
    trie = build_trie(model.config, placements)
    weight = model.embed.weight
    logp, counts = np.full((len(placements), len(items)), np.nan), Counts(trie.prefixes, 0, 0, 0.0)
    for chunk in plan_chunks(model.config, trie, items, memory_bytes, weight.dtype, weight.device.type):
        logp[:, chunk], done = score_chunk(model, trie, [items[i] for i in chunk], block_at)
        counts += done
    return logp, counts


@torch.inference_mode()
def score_chunk(
    model: Supernet,
    trie: Trie,
    items: list[Item],
    block_at: Callable[[int], Block] | None = None,
    measure: Callable[[list[int]], Callable[[Tensor, Tensor], Tensor]] | None = None,
) -> tuple[np.ndarray, Counts]:
    """Score all placements of the trie on a few items at once: logp float64 [P, n], nats, summed over each item's target tokens.

    ``block_at(layer)`` gives the weights of a layer (default: the model's own); it is called once per layer, first layer first, and
    a block is not used after the next call, so weights can be streamed. Hidden states keep the model's dtype; log-probabilities are
    formed in float32 and summed in float64. ``measure`` puts another number in place of a token's log-probability: called with the items
    of a tile, it gives a function of hidden states [R, D] and of which target of these items each predicts [R]. The function gives
    a number each [R], or C of them [R, C]: the sums are then [P, n, C].
    """
    config, weight = model.config, model.embed.weight
    for item in items:
        if not 0 <= int(item.tokens.min()) <= int(item.tokens.max()) < config.vocab:
            raise ValueError(f"item {item.name} has a token outside the model's vocabulary of {config.vocab}: make items with this teacher")
    batch_tokens = BATCH_TOKENS[weight.device.type]
    order = sorted(range(len(items)), key=lambda i: len(items[i].tokens))
    lengths = [len(items[i].tokens) - 1 for i in order]
    tiles = [_start(model, trie, [items[order[i]] for i in tile]) for tile in _tile(lengths, batch_tokens)]
    row = {p: i for i, p in enumerate(trie.placements)}
    logp, evaluations = np.empty(0), 0
    for layer in range(config.layers):
        block = block_at(layer) if block_at else model.blocks[layer]
        last = layer == config.layers - 1
        done = 0
        for tile in tiles:
            columns = order[done : done + len(tile.starts)]
            done += len(columns)
            for prefixes, x in _layer(block, trie, layer, tile, batch_tokens):
                evaluations += len(prefixes) * len(columns)
                if last:
                    sums = _sums(model, block, tile, x, measure(columns) if measure else None)
                    if not logp.size:
                        logp = np.full((len(trie.placements), len(items), *sums.shape[2:]), np.nan)
                    logp[np.ix_([row[p] for p in prefixes], columns)] = sums
                else:
                    _put(tile, prefixes, x + block.mlp(block.mlp_norm(x)))
    return logp, Counts(trie.prefixes, len(items), evaluations, sweep_flops(config, trie, items))


@dataclass(frozen=True)
class _Tile:
    """Items that go through the layers together, right-padded: mixers are causal, so the padding is never seen."""

    states: Tensor  # [slots, m, T, D]: the hidden states of the live prefixes
    slot: dict[str, int]  # where the state of a prefix is
    free: list[int]
    first: int  # the first position whose output predicts a target: from there on the last layer is evaluated
    at: Tensor  # positions in the flattened [m * (T - first)] whose output predicts a target
    targets: Tensor  # the tokens that are predicted there
    starts: np.ndarray  # [m] where the targets of each item start


def _tile(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Group ascending lengths so that one prefix of a tile is at most one batch and little of it is padding."""
    tiles: list[list[int]] = []
    for i, length in enumerate(lengths):
        if tiles and (len(tiles[-1]) + 1) * length <= batch_tokens and length <= PADDING * lengths[tiles[-1][0]]:
            tiles[-1].append(i)
        else:
            tiles.append([i])
    return tiles


def _start(model: Supernet, trie: Trie, items: list[Item]) -> _Tile:
    """A tile whose only state is the embedding. The last token of an item is predicted, never read."""
    device = model.embed.weight.device
    T = max(len(item.tokens) for item in items) - 1
    tokens = torch.stack([F.pad(item.tokens[:-1], (0, T + 1 - len(item.tokens))) for item in items]).to(device)
    first = _first(items, device.type)
    at = [i * (T - first) + torch.arange(item.prompt - 1 - first, len(item.tokens) - 1 - first) for i, item in enumerate(items)]
    targets = torch.cat([item.tokens[item.prompt :] for item in items])
    states = model.embed.weight.new_empty(trie.slots, len(items), T, model.config.hidden)
    states[0] = model.embed(tokens)
    starts = np.cumsum([0, *map(len, at[:-1])])
    return _Tile(states, {"": 0}, list(range(1, trie.slots)), first, torch.cat(at).to(device), targets.to(device), starts)


def _first(items: list[Item], device: str) -> int:
    """Where the last layer begins to matter. On a GPU it is evaluated whole: attention of the last tokens to all would leave the fused
    kernel."""
    return min(item.prompt for item in items) - 1 if device == "cpu" else 0


def _layer(block: Block, trie: Trie, layer: int, tile: _Tile, batch_tokens: int) -> Iterator[tuple[list[str], Tensor]]:
    """Up to the MLP: yields some of the next level's prefixes with ``x + mixer(norm(x))`` [B * m, T, D], in the last layer without the
    tokens before ``tile.first`` [B * m, T - first, D].

    A parent's slot is free as soon as its state was read, and each parent has a child, so its children always find room.
    """
    _, m, T, D = tile.states.shape
    first = tile.first if layer == len(trie.levels) - 2 else 0
    size = max(1, batch_tokens // (m * T))
    level = trie.levels[layer]
    for start in range(0, len(level), size):
        parents = level[start : start + size]
        slots = [tile.slot.pop(p) for p in parents]
        x = tile.states.index_select(0, _index(slots, tile))
        tile.free.extend(slots)
        normed = block.mixer_norm(x)
        for letter in block.mixers:
            rows = [i for i, p in enumerate(parents) if letter in trie.next_letters[p]]
            if rows:
                beside = rows[-1] - rows[0] + 1 == len(rows)  # as they mostly are: then nothing is copied
                these = slice(rows[0], rows[-1] + 1) if beside else rows
                some, some_normed = x[these], normed[these]
                mixed = _mixed(block.mixers[letter], some_normed.view(-1, T, D), first)
                yield [parents[i] + letter for i in rows], some.view(-1, T, D)[:, first:] + mixed


def _mixed(mixer: nn.Module, x: Tensor, first: int) -> Tensor:
    """The mixer's outputs from token ``first`` on [B, T - first, D]. One that does not know ``first`` computes all."""
    return mixer(x, first) if _knows_first(type(mixer)) else mixer(x)[:, first:]


@cache
def _knows_first(mixer: type[nn.Module]) -> bool:
    return "first" in signature(mixer.forward).parameters


def _put(tile: _Tile, prefixes: list[str], x: Tensor) -> None:
    slots = [tile.free.pop() for _ in prefixes]
    tile.states.index_copy_(0, _index(slots, tile), x.view(-1, *tile.states.shape[1:]))
    tile.slot.update(zip(prefixes, slots, strict=True))


def _index(slots: list[int], tile: _Tile) -> Tensor:
    return torch.tensor(slots, device=tile.states.device)


def _sums(model: Supernet, block: Block, tile: _Tile, x: Tensor, of: Callable[[Tensor, Tensor], Tensor] | None) -> np.ndarray:
    """[B * m, T - first, D] before the last MLP -> sums over each item's targets [B, m] or [B, m, C] of ``of``, else of
    log-probabilities. From here on only the positions that predict a target matter."""
    x = x.view(-1, tile.states.shape[1] * x.shape[1], x.shape[2]).index_select(1, tile.at).flatten(0, 1)
    x = model.norm(x + block.mlp(block.mlp_norm(x)))
    target = torch.arange(len(tile.targets), device=x.device).repeat(len(x) // len(tile.targets))
    if of is None:
        found = -head_loss(x, model.head.weight, tile.targets[target], LOGITS)
    else:
        rows = max(1, LOGITS // model.config.vocab)
        found = torch.cat([of(h, i) for h, i in zip(x.split(rows), target.split(rows), strict=True)])
    return np.add.reduceat(found.view(-1, len(tile.targets), *found.shape[1:]).cpu().double().numpy(), tile.starts, axis=1)


def sweep_flops(config: SupernetConfig, trie: Trie, items: list[Item]) -> float:
    """FLOPs of the chunk on the items' own tokens; the last MLP and the head run at target positions only. The last layer's mixers are
    counted whole, though on a CPU they leave out what no target needs."""
    letters = Counter(p[-1] for level in trie.levels[1:] for p in level)
    total, mlp = 0.0, 6.0 * config.hidden * config.ffn
    for tokens, count in Counter(len(item.tokens) - 1 for item in items).items():
        total += count * sum(times * layer_flops(config, letter, tokens) for letter, times in letters.items())
    for item in items:
        targets = len(item.tokens) - item.prompt
        total += len(trie.placements) * (2.0 * config.vocab * config.hidden * targets - mlp * (len(item.tokens) - 1 - targets))
    return total
