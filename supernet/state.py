"""What decoding keeps of running sequences: one pool per layer and mixer, in which the states of the rows that take it lie side by side.

A row is one sequence with a placement of its own. Rows join and leave at any time; weights are shared by all.
Shapes: R rows, T tokens, D hidden.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from supernet.decoder import Supernet
from supernet.mixers import MIXERS


@dataclass
class Pool:
    """The states of the rows that take one mixer in one layer: ``tensors[...][i]`` belong to row ``rows[i]``, beyond them is spare room."""

    letter: str
    tensors: list[Tensor] = field(default_factory=list)  # as the mixer's state_shapes says, with the pool's capacity in front
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Rows of one call that take the same mixer in a layer, in the order of their pool."""

    letter: str
    rows: tuple[int, ...]
    at: Tensor | None  # where they are among the rows of the call; None: they are all of them, in its order
    tensors: list[Tensor]  # the pool's
    places: slice | Tensor  # where in the pool they are

    def extend(self, mixer: nn.Module, x: Tensor, start: int | Tensor) -> Tensor:
        """The mixer's next tokens for these rows: [R, T, D] -> [R, T, D]; their states are written in place."""
        state = [t[self.places] for t in self.tensors]  # views where they lie together, otherwise copies
        mixed = mixer.extend(x, state, start)
        if isinstance(self.places, Tensor):
            for tensor, new in zip(self.tensors, state, strict=True):
                tensor[self.places] = new
        return mixed


@dataclass(frozen=True)
class Mark:
    """A row at some time, to come back to."""

    length: int
    room: int
    copies: list[list[Tensor]]  # per layer; empty where counting fewer tokens is enough


class States:
    """The running rows of one model. Not thread-safe; one call of ``generate.extend`` at a time."""

    def __init__(self, model: Supernet):
        self.config = model.config
        self.dtype, self.device = model.embed.weight.dtype, model.embed.weight.device
        self.pools = [{letter: Pool(letter) for letter in model.config.mixers} for _ in range(model.config.layers)]
        self.placements: dict[int, str] = {}
        self.lengths: dict[int, int] = {}  # tokens that each row has seen
        self.room = 0  # tokens that every row has room for
        self._next = 0
        self._groups: dict[tuple[int, ...], list[list[Group]]] = {}

    @torch.inference_mode()
    def join(self, placement: str, room: int = 1) -> int:
        """A new row that has seen nothing; its number. ``room``: tokens that it will see, as far as known; more are made room for later."""
        self.reserve(room)
        row, self._next = self._next, self._next + 1
        for pools, letter in zip(self.pools, placement, strict=True):
            pool = pools[letter]
            pool.rows.append(row)
            if not pool.tensors or len(pool.rows) > len(pool.tensors[0]):
                self._fit(pool, max(len(pool.rows), 2 * len(pool.rows) - 2))
            for tensor in pool.tensors:
                tensor[len(pool.rows) - 1].zero_()
        self.placements[row], self.lengths[row] = placement, 0
        self._groups.clear()
        return row

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Forget a row: the last row of each of its pools takes its place."""
        for pools, letter in zip(self.pools, self.placements.pop(row), strict=True):
            pool = pools[letter]
            i, last = pool.rows.index(row), len(pool.rows) - 1
            for tensor in pool.tensors:
                tensor[i].copy_(tensor[last])
            pool.rows[i] = pool.rows[last]
            pool.rows.pop()
            if not pool.rows:
                pool.tensors = []
        del self.lengths[row]
        self._groups.clear()
        if not self.lengths:
            self.room = 0

    @torch.inference_mode()
    def reserve(self, tokens: int) -> None:
        """Make room for rows of ``tokens``: at first as many as are asked for, later at least twice what there was."""
        if tokens <= self.room:
            return
        self.room = max(tokens, 2 * self.room)
        for pools in self.pools:
            for pool in pools.values():
                if pool.tensors:
                    self._fit(pool, len(pool.tensors[0]))
        self._groups.clear()

    def nbytes(self) -> int:
        """Bytes of all pools, spare room included."""
        return sum(t.nbytes for pools in self.pools for pool in pools.values() for t in pool.tensors)

    def groups(self, rows: tuple[int, ...]) -> list[list[Group]]:
        """Per layer, the rows of a call by mixer, with their states."""
        if rows not in self._groups:
            self._groups[rows] = [self._layer(pools, layer, rows) for layer, pools in enumerate(self.pools)]
        return self._groups[rows]

    @torch.inference_mode()
    def mark(self, row: int) -> Mark:
        """What ``back`` needs to forget the tokens that come after this: copies where a mixer overwrites its state."""
        copies = []
        for pools, letter in zip(self.pools, self.placements[row], strict=True):
            kept = MIXERS[letter].overwrites(self.config, self.room)
            copies.append([t[pools[letter].rows.index(row)].clone() for t in pools[letter].tensors] if kept else [])
        return Mark(self.lengths[row], self.room, copies)

    @torch.inference_mode()
    def back(self, row: int, mark: Mark) -> None:
        """Forget what came after ``mark``. The room must not have grown since."""
        assert mark.room == self.room, "reserve the room before marking"
        for pools, letter, copies in zip(self.pools, self.placements[row], mark.copies, strict=True):
            i = pools[letter].rows.index(row)
            for tensor, copy in zip(pools[letter].tensors, copies, strict=False):
                tensor[i].copy_(copy)
        self.lengths[row] = mark.length

    def _layer(self, pools: dict[str, Pool], layer: int, rows: tuple[int, ...]) -> list[Group]:
        groups = []
        for letter, pool in pools.items():
            place = {row: i for i, row in enumerate(pool.rows)}
            mine = sorted((i for i, row in enumerate(rows) if self.placements[row][layer] == letter), key=lambda i: place[rows[i]])
            if not mine:
                continue
            places = [place[rows[i]] for i in mine]
            at = None if mine == list(range(len(rows))) else torch.tensor(mine, device=self.device)
            together = slice(places[0], places[0] + len(places))
            where = together if places == list(range(together.start, together.stop)) else torch.tensor(places, device=self.device)
            groups.append(Group(letter, tuple(rows[i] for i in mine), at, pool.tensors, where))
        return groups

    def _fit(self, pool: Pool, capacity: int) -> None:
        """Tensors for ``capacity`` rows of ``room`` tokens that hold what the old ones held."""
        shapes = MIXERS[pool.letter].state_shapes(self.config, self.room, self.dtype)
        new = [torch.zeros(capacity, *shape, dtype=dtype, device=self.device) for shape, dtype in shapes]
        for old, tensor in zip(pool.tensors, new, strict=False):
            tensor[tuple(map(slice, old.shape))] = old
        pool.tensors = new
