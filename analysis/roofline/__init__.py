"""What one decode step of a placement moves, computes and keeps, and so how fast a stated device can be at most. Predicted, never measured.

A step gives one token to each of B sequences of n tokens. Its time is the larger of bytes / bandwidth and FLOPs / rate (Williams et al.
2009, the roofline); B is the largest batch whose states fit beside the weights. What is left out: launches, norms, activations, the
difference between a kernel and its device. Sizes are in elements, contexts in tokens, memory in bytes, rates per second.

Of one layer, per sequence of n tokens (H heads, k key-value heads, d head size, W window, all of the mixer's own):

====== ======================================= ====================================== =========================
mixer  kept                                    moved per token                        FLOPs beside the weights'
====== ======================================= ====================================== =========================
F      2 k d n                                 the same, read                         4 H d n
S      2 k d min(n, W)                         the same, read                         4 H d min(n, W)
K, G   state of K x V a head in float32, and   twice that: read and written           7 H K V
       the convolutions' last inputs
====== ======================================= ====================================== =========================
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from analysis.cost import UNIT


@dataclass(frozen=True)
class Device:
    """One accelerator, as its maker states it."""

    bandwidth: float  # bytes per second
    flops: float  # FLOP per second of dense bfloat16 products
    memory: float  # bytes


DEVICES = {
    "h100": Device(3.35e12, 989e12, 80e9),  # SXM
    "h200": Device(4.8e12, 989e12, 141e9),  # SXM
    "b200": Device(8.0e12, 2250e12, 192e9),
    "a100": Device(2.039e12, 312e12, 80e9),  # SXM, 80 GB
    "l40s": Device(0.864e12, 362e12, 48e9),
}
"""By the makers' data sheets. Others, CPUs among them, are given by their numbers: see ``device``."""

SHARE = 0.9
"""Of a device's memory, what weights and states may take."""


def device(text: str) -> Device:
    """A device by its name, or ``NAME,GB/s,TFLOP/s,GB`` by its numbers, as in ``cpu,20,0.2,8``. ValueError names the choices."""
    name, *numbers = text.split(",")
    if not numbers:
        if name not in DEVICES:
            raise ValueError(f"no device {text!r}: choose from {', '.join(DEVICES)}, or give its numbers as NAME,GB/s,TFLOP/s,GB, as in "
                             "cpu,20,0.2,8")  # fmt: skip
        return DEVICES[name]
    try:
        bandwidth, flops, memory = map(float, numbers)
    except ValueError:
        bandwidth = flops = memory = 0.0
    if not all(0 < value < float("inf") for value in (bandwidth, flops, memory)):
        raise ValueError(f"device {text!r}: give three positive numbers as NAME,GB/s,TFLOP/s,GB, as in cpu,20,0.2,8")
    return Device(bandwidth * 1e9, flops * 1e12, memory * 1e9)


@dataclass(frozen=True)
class Shapes:
    """A supernet's shapes under the names of its configuration; zeros in the delta mixers mean "as in attention"."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    window: int
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    mixers: str = "FSKG"
    conv_width: int = 4
    gdn_key_heads: int = 0
    gdn_value_heads: int = 0
    gdn_key_dim: int = 0
    gdn_value_dim: int = 0
    kda_heads: int = 0
    kda_dim: int = 0

    def __post_init__(self) -> None:
        same = {"gdn_key_heads": self.kv_heads, "gdn_value_heads": self.heads, "gdn_key_dim": self.head_dim,
                "gdn_value_dim": self.head_dim, "kda_heads": self.heads, "kda_dim": self.head_dim}  # fmt: skip
        for name, value in same.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Shapes":
        """From the options of a model, of which other ones and None are left out. ValueError names the shapes that are missing."""
        given = {f.name: options[f.name] for f in fields(cls) if options.get(f.name) is not None}
        needed = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "window")
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f"the model's shapes lack {', '.join(missing)}")
        return cls(**given)


APRIEL_15B = Shapes(layers=48, hidden=5120, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=131072, window=4096)
"""Super Apriel (arXiv 2604.19877)."""


def mixer_weights(shapes: Shapes, letter: str) -> int:
    """Weights of one mixer of one layer. ValueError for a mixer whose decoding is not described here."""
    s = shapes
    if letter in "FS":
        inner = (s.heads + 2 * s.kv_heads) * s.head_dim
        own = s.hidden * (inner + s.heads * s.head_dim)
        return own + s.qkv_bias * inner + s.qk_norm * 2 * s.head_dim
    if letter == "K":
        wide = s.kda_heads * s.kda_dim
        low = 2 * (s.hidden * s.kda_dim + s.kda_dim * wide)  # of decay and gate
        return 4 * s.hidden * wide + low + s.hidden * s.kda_heads + 3 * s.conv_width * wide + s.kda_heads + wide + s.kda_dim
    if letter == "G":
        keys, values = s.gdn_key_heads * s.gdn_key_dim, s.gdn_value_heads * s.gdn_value_dim
        projections = s.hidden * (2 * keys + 2 * values) + 2 * s.hidden * s.gdn_value_heads + values * s.hidden
        return projections + s.conv_width * (2 * keys + values) + 2 * s.gdn_value_heads + s.gdn_value_dim
    raise ValueError(f"the roofline does not know mixer {letter}: it knows F, S, K, G; measure the others, or give a table of costs")


def layer_weights(shapes: Shapes, letter: str) -> int:
    """Weights that one layer reads: mixer, MLP and the two norms."""
    return mixer_weights(shapes, letter) + 3 * shapes.hidden * shapes.ffn + 2 * shapes.hidden


def kept(shapes: Shapes, letter: str, context: int, size: int = 2) -> int:
    """Bytes that one layer keeps of one sequence; ``size`` of an element, but 4 in the delta rule's state."""
    s = shapes
    if letter in "FS":
        return 2 * s.kv_heads * s.head_dim * (context if letter == "F" else min(context, s.window)) * size
    mixer_weights(s, letter)  # refuses other letters
    if letter == "K":
        return 4 * s.kda_heads * s.kda_dim**2 + size * (s.conv_width - 1) * 3 * s.kda_heads * s.kda_dim
    channels = 2 * s.gdn_key_heads * s.gdn_key_dim + s.gdn_value_heads * s.gdn_value_dim
    return 4 * s.gdn_value_heads * s.gdn_key_dim * s.gdn_value_dim + size * (s.conv_width - 1) * channels


def moved(shapes: Shapes, letter: str, context: int, size: int = 2) -> int:
    """Bytes of states that one layer moves for one token: keys and values are read, a delta rule's state is read and written."""
    return kept(shapes, letter, context, size) * (1 if letter in "FS" else 2)


def token_flops(shapes: Shapes, letter: str, context: int) -> float:
    """FLOPs of one layer for one token: two a weight, and the mixing."""
    s = shapes
    mixing = {
        "F": 4 * s.heads * s.head_dim * context,
        "S": 4 * s.heads * s.head_dim * min(context, s.window),
        "K": 7 * s.kda_heads * s.kda_dim**2,
        "G": 7 * s.gdn_value_heads * s.gdn_key_dim * s.gdn_value_dim,
    }
    return 2.0 * layer_weights(s, letter) + mixing[letter]


def resident(shapes: Shapes, placement: str | None = None, size: int = 2) -> int:
    """Bytes of weights in memory: of the whole supernet, or of one placement alone."""
    s, ends = shapes, (1 if shapes.tied else 2) * shapes.vocab * shapes.hidden + shapes.hidden
    if placement is not None:
        return size * (ends + sum(layer_weights(s, letter) for letter in placement))
    shared = 3 * s.hidden * s.ffn + 2 * s.hidden
    return size * (ends + s.layers * (shared + sum(mixer_weights(s, letter) for letter in s.mixers)))


def read(shapes: Shapes, placement: str, size: int = 2) -> int:
    """Bytes of weights that a step reads: the placement's layers, the last norm and the head."""
    own = sum(placement.count(letter) * layer_weights(shapes, letter) for letter in set(placement))
    return size * (own + shapes.hidden + shapes.vocab * shapes.hidden)


@dataclass(frozen=True)
class Step:
    """A decode step, as predicted."""

    batch: int  # sequences
    seconds: float
    bytes: float
    flops: float

    @property
    def tokens_per_second(self) -> float:
        return self.batch / self.seconds


def largest_batch(
    shapes: Shapes, placement: str, on: Device, context: int, share: float = SHARE, whole: bool = True, size: int = 2
) -> int:  # fmt: skip
    """Sequences of ``context`` tokens that fit ``share`` of the memory, beside the supernet (``whole``) or the placement's weights."""
    free = share * on.memory - resident(shapes, None if whole else placement, size)
    return max(0, int(free // sum(kept(shapes, letter, context, size) for letter in placement)))


def step(
    shapes: Shapes, placement: str, on: Device, context: int,
    share: float = SHARE, whole: bool = True, batch: int | None = None, size: int = 2,
) -> Step:  # fmt: skip
    """One decode step at the largest batch that fits, or at ``batch``; ``size``: bytes of a weight and of a cached element.

    Raises ValueError where not one sequence fits.
    """
    if context < 1:
        raise ValueError(f"context is {context}: give 1 token or more")
    batch = largest_batch(shapes, placement, on, context, share, whole, size) if batch is None else batch
    if batch < 1:
        weights = resident(shapes, None if whole else placement, size) / 1e9
        raise ValueError(f"not one sequence of {context} tokens fits: weights take {weights:.3g} GB of {share * on.memory / 1e9:.3g} GB; "
                         "take a device with more memory or a shorter context")  # fmt: skip
    states = sum(moved(shapes, letter, context, size) for letter in placement)
    total = read(shapes, placement, size) + batch * states
    flops = batch * (sum(token_flops(shapes, letter, context) for letter in placement) + 2.0 * shapes.vocab * shapes.hidden)
    return Step(batch, max(total / on.bandwidth, flops / on.flops), total, flops)


def ratio(shapes: Shapes, placement: str, on: Device, context: int, **how: Any) -> float:
    """Tokens per second of a placement over those of all-FA, each at its largest batch; ``how`` as in ``step``."""
    mine, full = (step(shapes, p, on, context, **how) for p in (placement, "F" * len(placement)))
    return mine.tokens_per_second / full.tokens_per_second


def coefficients(
    shapes: Shapes, on: Device, context: int, share: float = SHARE, whole: bool = True, size: int = 2, unit: float = UNIT
) -> dict[str, float]:  # fmt: skip
    """Cost of one layer of each mixer in FA equivalents, on the grid of budgets: what makes the cost of a placement a sum over layers.

    Derivation. A step of batch B reads the weights R once, and per sequence moves m_l in layer l: its time per token is
    (R / B + sum m_l) / bandwidth. Memory limits the batch: B = M / sum s_l, with s_l kept in layer l and M left beside the weights. So

        seconds per token = sum over l of (R s_l / M + m_l) / bandwidth,

    which is a sum over layers but for R and M. R is taken of all-FA (K reads 13% more at 15B, the rest less), and M beside the supernet or,
    where ``whole`` is false, beside all-FA's weights. A layer never takes less than its FLOPs over the rate. Batches are not rounded.
    ``unit`` 0 gives the numbers as they are. Raises ValueError where nothing is left for states.
    """
    if context < 1:
        raise ValueError(f"context is {context}: give 1 token or more")
    full = "F" * shapes.layers
    weights, left = read(shapes, full, size), share * on.memory - resident(shapes, None if whole else full, size)
    if left < kept(shapes, "F", context, size) * shapes.layers:
        step(shapes, full, on, context, share, whole, size=size)  # says what does not fit
    times = {}
    for letter in shapes.mixers:
        bytes_moved = weights * kept(shapes, letter, context, size) / left + moved(shapes, letter, context, size)
        times[letter] = max(bytes_moved / on.bandwidth, token_flops(shapes, letter, context) / on.flops)
    base = times.get("F", max(times.values()))
    if not unit:
        return {letter: time / base for letter, time in times.items()}
    return {letter: round(max(round(time / base / unit), 1) * unit, 9) for letter, time in times.items()}
