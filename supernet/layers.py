"""The parts of a block that are not mixers. Shapes: B batch, T tokens, D hidden, C channels, d head dimension."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.config import Rope
from supernet.ops.kernels import fused, rms_norm, swiglu, turned


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last axis, in float32 whatever the input (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` without biases (Shazeer 2020, eq. 6)."""

    def __init__(self, hidden: int, ffn: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class CausalConv(nn.Module):
    """Depthwise causal convolution over time, no bias, then SiLU: [B, T, C] -> ([B, T, C], the last inputs [B, width - 1, C]).

    Written as ``width`` shifted products: on a CPU that beats a grouped conv1d and needs no transposes.
    The weight keeps conv1d's shape [C, 1, width]; its last tap meets the current token. The second result of one call is the ``past`` of
    the next, which goes on after it; without a past nothing lies before the first token.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, width))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        width, tokens = self.weight.shape[-1], x.shape[1]
        taps = self.taps(x.dtype)
        padded = F.pad(x, (0, 0, width - 1, 0)) if past is None else torch.cat([past.to(x.dtype), x], 1)
        out = padded[:, :tokens] * taps[0]
        for i in range(1, width):
            out = torch.addcmul(out, padded[:, i : i + tokens], taps[i])
        return F.silu(out), padded[:, tokens:]

    def taps(self, dtype: torch.dtype) -> Tensor:
        """[width, C], contiguous: strided taps would cost three times as much."""
        return self.weight[:, 0].T.to(dtype).contiguous()


def rotate(x: Tensor, rope: Rope, start: int | Tensor = 0) -> Tensor:
    """Rotary position embedding, rotate-half form, over the whole head (Su et al. 2021, eq. 34): [B, H, T, d] -> same.

    ``start``: position of the first token, for all rows or for each [B]. Angles are formed in float32.
    """
    in_one_pass = isinstance(start, int) and fused(x)
    cos, sin = turns_of(x.shape[-2], x.shape[-1], rope, start, x.device, torch.float32 if in_one_pass else x.dtype)
    if in_one_pass:
        return turned(x, cos, sin)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def turns(tokens: int, d: int, rope: Rope, start: int | Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles at ``tokens`` positions from ``start`` on: each [T, d / 2], or [B, 1, T, d / 2]."""
    position = torch.arange(tokens, device=device)
    position = position + start.to(device)[:, None, None] if isinstance(start, Tensor) else position + start  # [T] or [B, 1, T]
    angle = position.float()[..., None] * frequencies(d, rope, device)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def frequencies(d: int, rope: Rope, device: torch.device | str = "cpu") -> Tensor:
    """Radians per token of each pair of dimensions, [d / 2], float32: theta^(-2i/d), slowed down where ``rope.type`` says so.

    ``linear``: all are divided by the factor (position interpolation, Chen et al. 2023, eq. 4). ``llama3``: those that turn less than
    ``low`` times over ``original`` tokens are, those that turn more than ``high`` times stay, and between the two the share that stays
    grows linearly with the number of turns (Llama 3.1; ``rope_type: llama3`` of transformers).
    """
    plain = rope.theta ** (-torch.arange(0, d, 2, device=device, dtype=torch.float32) / d)
    if rope.type == "linear":
        return plain / rope.factor
    if rope.type == "llama3":
        times = plain * rope.original / (2 * math.pi)
        stays = ((times - rope.low) / (rope.high - rope.low)).clamp(0, 1)
        return plain * (stays + (1 - stays) / rope.factor)
    return plain


turns_once = lru_cache(maxsize=4)(turns)
"""All layers of a decoding step turn by the same angles. Only in inference mode: such tensors cannot be used in training."""


def turns_of(tokens: int, d: int, rope: Rope, start: int | Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``turns``, once where that can be."""
    once = isinstance(start, int) and torch.is_inference_mode_enabled()
    return (turns_once if once else turns)(tokens, d, rope, start, device, dtype)
