"""The mixers by letter. A new mixer is one file and one line here, and it trains, is swept and decodes.

A mixer is an ``nn.Module`` made from a SupernetConfig that maps [B, T, D] to [B, T, D] causally. Its ``forward(x, first)`` may take the
position from which on outputs are wanted; a sweep's last layer asks for no others. It has

- ``init_from_attention(teacher)``: fill the weights from a FullAttention;
- ``mixing_flops(config, tokens)`` and ``saved_bytes(config, batch, tokens, itemsize)``;
- ``state_shapes(config, room, dtype)``: shapes and dtypes of what decoding keeps of one sequence of at most ``room`` tokens. It starts as
  zeros, and a shape for more room holds one for less in its first corner;
- ``overwrites(config, room)``: whether going back to fewer tokens needs a copy of that, or only a smaller ``start``;
- ``extend(x, state, start)``: the next tokens x [B, T, D] of B sequences of which ``start`` were seen (a number, or [B] on the CPU).
  ``state`` is a list of those tensors with B in front, and is written in place.

The forward pass, ``extend`` and serving share everything that has weights: of an attention ``qkv(x, start)``, which gives q, k and v
at their positions, and ``out(o)``; of a delta rule ``inputs(x, past, convolve)``, which gives q, k, v, g, beta, gate and the next
``past`` of the convolutions, and ``out(o, gate)``. What lies between has no weights: scaled dot products, or
``ops.kernels.delta_rule_from``.
"""

from supernet.mixers.attention import FullAttention, SlidingWindowAttention
from supernet.mixers.delta import GatedDeltaNet, KimiDeltaAttention

MIXERS = {
    "F": FullAttention,
    "S": SlidingWindowAttention,
    "K": KimiDeltaAttention,
    "G": GatedDeltaNet,
}
