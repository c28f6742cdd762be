"""Full attention and sliding-window attention: one class, two sets of weights. Shapes: B batch, T tokens, D hidden, H heads, d head dim."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.config import SupernetConfig
from supernet.layers import rotate


class FullAttention(nn.Module):
    """Grouped-query causal attention with rotary positions: [B, T, D] -> [B, T, D]. Query head h reads key-value head h // group."""

    windowed = False

    def __init__(self, config: SupernetConfig):
        super().__init__()
        c = self.config = config
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        c, T = self.config, x.shape[1]
        q, k, v = (p(x).unflatten(-1, (-1, c.head_dim)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, c.rope_theta), rotate(k, c.rope_theta)
        # Keys and values are repeated here because enable_gqa leaves the fused CPU kernel.
        k, v = k.repeat_interleave(c.group, 1), v.repeat_interleave(c.group, 1)
        if self.windowed and c.window < T:
            distance = torch.arange(T, device=x.device)[:, None] - torch.arange(T, device=x.device)
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < c.window))
        else:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).flatten(2))

    @classmethod
    def mixing_flops(cls, config: SupernetConfig, tokens: int) -> float:
        """FLOPs of scores and weighted sums for one sequence, without the projections; only the causal (windowed) pairs count."""
        reach = min(config.window, tokens) if cls.windowed else tokens
        pairs = reach * (reach + 1) / 2 + (tokens - reach) * reach
        return 4.0 * pairs * config.heads * config.head_dim

    @torch.no_grad()
    def init_from_attention(self, teacher: "FullAttention") -> None:
        """An exact copy."""
        self.load_state_dict(teacher.state_dict())


class SlidingWindowAttention(FullAttention):
    """Full attention that sees the last ``window`` tokens, itself included."""

    windowed = True
