"""Shapes of a supernet. Counting is in ``size.py``; nothing here allocates."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from supernet.placement import LETTERS, Placement

LARGEST = 2**31 - 1
"""Of a size."""


class Rope(NamedTuple):
    """How positions turn into angles: fields of SupernetConfig without their prefix."""

    theta: float
    type: str
    factor: float
    low: float
    high: float
    original: int


@dataclass(frozen=True)
class SupernetConfig:
    """Every shape of the model. Sizes are in elements, ``window`` in tokens. Zeros in the delta mixers mean "as in attention".

    Raises ValueError on shapes that do not fit together.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    window: int  # a token sees itself and the window - 1 tokens before it
    tied: bool = False  # output head shares the embedding
    qkv_bias: bool = False  # Qwen2
    qk_norm: bool = False  # Qwen3: a norm over every head of q and k, before the rotary embedding; its eps is norm_eps
    rope_theta: float = 10_000.0
    rope_type: Literal["default", "linear", "llama3"] = "default"  # linear: all angles divided by rope_factor; llama3: the slow ones
    rope_factor: float = 1.0
    rope_low: float = 1.0  # llama3: a pair that turns less often than this over rope_original tokens is divided by rope_factor
    rope_high: float = 4.0  # llama3: a pair that turns more often stays; between the two it is interpolated
    rope_original: int = 8192  # llama3: tokens of the context before it was stretched
    norm_eps: float = 1e-5
    delta_norm_eps: float = 1e-5  # of the norm inside KDA and GDN; Apriel2 has 1e-5 there whatever the other norms have
    mixers: str = LETTERS  # the trained mixers of every layer
    conv_width: int = 4  # causal convolution before the delta rule
    gdn_key_heads: int = 0  # 0: kv_heads
    gdn_value_heads: int = 0  # 0: heads
    gdn_key_dim: int = 0  # 0: head_dim
    gdn_value_dim: int = 0  # 0: head_dim
    kda_heads: int = 0  # 0: heads
    kda_dim: int = 0  # 0: head_dim
    kda_gate: Literal["silu", "sigmoid"] = "silu"  # SiLU in Apriel2, sigmoid in Kimi
    fixed: str = ""  # the only placement of a model that was exported with one mixer per layer; "": every layer holds all mixers

    def __post_init__(self) -> None:
        as_attention = {"gdn_key_heads": self.kv_heads, "gdn_value_heads": self.heads, "gdn_key_dim": self.head_dim,
                        "gdn_value_dim": self.head_dim, "kda_heads": self.heads, "kda_dim": self.head_dim}  # fmt: skip
        for field, value in as_attention.items():
            if getattr(self, field) == 0:
                object.__setattr__(self, field, value)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and not 1 <= value <= LARGEST:
                raise ValueError(f"model.{field.name} is {value}: give a positive number{'' if value < 1 else f' up to {LARGEST}'}")
            if field.type is float and not 0 < value < math.inf:
                raise ValueError(f"model.{field.name} is {value}: give a positive number")
        for many, few in (("heads", "kv_heads"), ("gdn_value_heads", "gdn_key_heads")):
            if getattr(self, many) % getattr(self, few):
                raise ValueError(f"model.{many}={getattr(self, many)} is not a multiple of model.{few}={getattr(self, few)}")
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim is {self.head_dim}: rotary embedding needs an even number")
        if self.rope_type not in ("default", "linear", "llama3"):
            raise ValueError(f"model.rope_type is {self.rope_type!r}: choose default, linear or llama3")
        if not (self.rope_factor > 0 and self.rope_high > self.rope_low > 0):
            raise ValueError(f"model.rope_factor={self.rope_factor}, rope_low={self.rope_low}, rope_high={self.rope_high}: give positive "
                             "numbers, the last larger than the second")  # fmt: skip
        if self.rope_type == "default" and self.rope_factor != 1:
            raise ValueError(f"model.rope_factor={self.rope_factor} does nothing with model.rope_type=default: choose linear or llama3")
        if self.kda_gate not in ("silu", "sigmoid"):
            raise ValueError(f"model.kda_gate is {self.kda_gate!r}: choose silu or sigmoid")
        if not self.mixers or len(set(self.mixers)) != len(self.mixers):
            raise ValueError(f"model.mixers is {self.mixers!r}: give each mixer letter once, e.g. {LETTERS}")
        if self.fixed:
            Placement(self.fixed, self.layers, self.mixers)

    def placement(self, text: str) -> Placement:
        """The placement, checked against the layers and mixers of this model. ValueError names what is wrong."""
        if self.fixed and text != self.fixed:
            raise ValueError(f"placement {text!r}: this model was exported with {self.fixed} alone; take the supernet for others")
        return Placement(text, self.layers, self.mixers)

    def letters(self, layer: int) -> str:
        """The mixers that a layer holds."""
        return self.fixed[layer] if self.fixed else self.mixers

    @property
    def rope(self) -> Rope:
        """The fields that rotary embedding takes."""
        return Rope(self.rope_theta, self.rope_type, self.rope_factor, self.rope_low, self.rope_high, self.rope_original)

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads

    def replace(self, **changes: object) -> "SupernetConfig":
        return dataclasses.replace(self, **changes)
