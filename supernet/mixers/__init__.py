"""The mixers by letter. A new mixer is one file and one line here.

A mixer is an ``nn.Module`` made from a SupernetConfig that maps [B, T, D] to [B, T, D] causally, with
``init_from_attention(teacher)`` (fill the weights from a FullAttention), ``mixing_flops(config, tokens)`` and
``saved_bytes(config, batch, tokens, itemsize)``.
"""

from supernet.mixers.attention import FullAttention, SlidingWindowAttention
from supernet.mixers.delta import GatedDeltaNet, KimiDeltaAttention

MIXERS = {
    "F": FullAttention,
    "S": SlidingWindowAttention,
    "K": KimiDeltaAttention,
    "G": GatedDeltaNet,
}
