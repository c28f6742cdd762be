"""What the mixers of a layer do over pages on a GPU: the project's modules, between them vLLM's own Triton kernels.

All rows of a step that take one mixer go through one call, their new tokens packed one after another, whatever their number. Attention
reads the pages by block tables; the delta rules keep their states in place, float32 and [H, V, K] as vLLM's kernels want them. One new
token takes the recurrent kernel, more take the chunked one, which is for bfloat16 alone: float32 is recurrent throughout.

``plan`` and ``mix`` are those of ``mixing.py``. Tests run the kernels in Triton's interpreter; on a GPU ``supernet.serving.check`` is to.
Shapes: n tokens of a part, R rows, D hidden, H heads, d head dimension, P pages of a layer, N tokens in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.mamba.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from vllm.third_party.flash_linear_attention.ops import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from vllm.third_party.flash_linear_attention.ops.kda import chunk_kda, fused_recurrent_kda
from vllm.v1.attention.backends.utils import compute_causal_conv1d_metadata
from vllm.v1.attention.ops.triton_reshape_and_cache_flash import triton_reshape_and_cache_flash
from vllm.v1.attention.ops.triton_unified_attention import unified_attention

from supernet.layers import CausalConv
from supernet.mixers import MIXERS
from supernet.serving.mixing import attends

SEGMENTS = 16
"""Pieces of a long context that attention works on at the same time where few rows decode."""

GRID = 128
"""Programs that fill a GPU: with fewer, rows times key-value heads, attention takes SEGMENTS. Both as in vLLM's Triton backend."""


@dataclass
class Part:
    """Rows of a step that take one mixer in a layer, and their packed tokens. Tensors are int32 on the device."""

    letter: str
    rows: Tensor  # [R]
    tokens: Tensor  # [n]: where they are in the batch
    bounds: Tensor  # [R + 1]: the first token of each row among those of the part
    fresh: Tensor  # rows that begin here
    longest: int  # new tokens of a row, at most
    convolution: Any  # what vLLM's convolution of several tokens a row wants to know beforehand


def plan(column: Sequence[str], bounds: Sequence[int], starts: Sequence[int], device: torch.device) -> list[Part]:
    """A layer's parts. ``column``: the mixer of each row; row i has the tokens from ``bounds[i]`` on and has seen ``starts[i]`` before."""
    new = np.diff(bounds)
    groups: dict[tuple[str, bool], list[int]] = {}
    for row, letter in enumerate(column):
        if new[row]:
            groups.setdefault((letter, attends(MIXERS[letter]) or new[row] == 1), []).append(row)
    parts = []
    for (letter, _), rows in groups.items():
        tokens = np.concatenate([np.arange(bounds[row], bounds[row + 1]) for row in rows])
        ends = np.concatenate([[0], np.cumsum(new[rows])])
        fresh = [row for row in rows if starts[row] == 0]
        arrays = [np.asarray(array, np.int32) for array in (rows, tokens, ends, fresh)]
        sent = torch.from_numpy(np.concatenate(arrays)).to(device, non_blocking=True).split([len(array) for array in arrays])
        convolution, longest = None, int(new[rows].max())
        if longest > 1 and not attends(MIXERS[letter]):
            names = ("nums_dict", "batch_ptr", "token_chunk_offset_ptr")
            known = compute_causal_conv1d_metadata(torch.from_numpy(arrays[2]), device=device)
            convolution = SimpleNamespace(**dict(zip(names, known, strict=True)))
        parts.append(Part(letter, *sent, longest, convolution))
    return parts


def shape_of_state(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How vLLM's kernels lay out what a mixer calls a state [H, K, V]: [H, V, K]. The convolution's [width - 1, C] stays."""
    return (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape


def mix(mixer: nn.Module, x: Tensor, part: Part, pages: Any, metadata: Any) -> Tensor:
    """The part's new tokens x [n, D] -> [n, D]; what is kept of them is written to the layer's pages.

    ``pages``: [P, kv_heads, N, 2 d] of an attention, or the tensors of a delta rule's ``state_shapes`` with P in front. ``metadata``:
    vLLM's CommonAttentionMetadata of the layer.
    """
    return (_attend if attends(mixer) else _recur)(mixer, x, part, pages, metadata)


def _attend(mixer: nn.Module, x: Tensor, part: Part, pages: Tensor, metadata: Any) -> Tensor:
    c, table = mixer.config, metadata.block_table_tensor[part.rows]
    lengths = metadata.seq_lens[part.rows]
    row = torch.repeat_interleave(part.bounds.diff(), output_size=len(part.tokens))
    position = torch.arange(len(x), device=x.device) - part.bounds[1:][row] + lengths[row]
    q, k, v = (y.squeeze(2) for y in mixer.qkv(x[:, None], position))  # [n, H or kv_heads, d]
    keys, values = pages.transpose(1, 2).chunk(2, -1)  # [P, N, kv_heads, d]
    one = _one(x.device)
    triton_reshape_and_cache_flash(k, v, keys, values, metadata.slot_mapping[part.tokens], "auto", one, one)
    o = torch.empty_like(q)
    unified_attention(
        q, keys, values, o, cu_seqlens_q=part.bounds, max_seqlen_q=part.longest, seqused_k=lengths, max_seqlen_k=metadata.max_seq_len,
        softmax_scale=c.head_dim**-0.5, causal=True, window_size=(c.window - 1, 0) if mixer.windowed else (-1, -1), block_table=table,
        softcap=0, q_descale=None, k_descale=None, v_descale=None, **_segments(c.heads, c.kv_heads, c.head_dim, x.device),
    )  # fmt: skip
    return mixer.out(o[:, :, None])[:, 0]


def _recur(mixer: nn.Module, x: Tensor, part: Part, views: Sequence[Tensor], metadata: Any) -> Tensor:
    slots = metadata.block_table_tensor[:, 0]
    if len(part.fresh):
        for view in views:
            view[slots[part.fresh]] = 0
    slots, (past, states) = slots[part.rows], views

    def convolve(conv: CausalConv, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """y [1, n, C] after ``before`` [P, width - 1, C], which is written in place; so nothing is handed on."""
        y, weight, kept = y[0].contiguous(), conv.weight[:, 0].to(y.dtype), before.transpose(1, 2)
        if part.longest == 1:
            y = causal_conv1d_update(y, kept, weight, None, "silu", conv_state_indices=slots)
        else:
            seen = torch.ones_like(slots, dtype=torch.bool)
            more = {"cache_indices": slots, "has_initial_state": seen, "activation": "silu", "metadata": part.convolution}
            y = causal_conv1d_fn(y.T, weight, None, kept, part.bounds, **more).T
        return y[None], y[None, :0]

    q, k, v, g, beta, gate, _ = mixer.inputs(x[None], past, convolve)
    kda = g.shape[-1] > 1
    inputs = {"g": g if kda else g[..., 0], "beta": beta, "scale": 1.0, "cu_seqlens": part.bounds, "use_qk_l2norm_in_kernel": False}
    if part.longest > 1 and v.dtype != torch.float32:
        chunked = chunk_kda if kda else chunk_gated_delta_rule
        q, k = q.to(v.dtype).contiguous(), k.to(v.dtype).contiguous()
        o, after = chunked(q, k, v.contiguous(), **inputs, initial_state=states[slots], output_final_state=True)
        # Page 0 is that of rows which vLLM made up. It stays zero, because windows read it for what they gave back.
        states[slots] = torch.where((slots > 0)[:, None, None, None], after, 0.0)
    else:
        # The kernel writes the state after every token, to the page that is named for it: always the row's own.
        at = slots if part.longest == 1 else slots[:, None].repeat(1, part.longest)
        recurrent = fused_recurrent_kda if kda else fused_recurrent_gated_delta_rule
        o, _ = recurrent(q, k, v, **inputs, initial_state=states, inplace_final_state=True, ssm_state_indices=at)
    return mixer.out(o.to(x.dtype), gate)[0]


@lru_cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


@lru_cache
def _segments(heads: int, kv_heads: int, d: int, device: torch.device) -> dict[str, Any]:
    """Room for partial results of attention over segments of the context, for up to GRID // kv_heads rows that decode."""
    few, width = max(GRID // kv_heads, 1), 1 << (d - 1).bit_length()
    shapes = {"output": (few, heads, SEGMENTS, width), "max": (few, heads, SEGMENTS), "expsum": (few, heads, SEGMENTS)}
    room = {f"softmax_segm_{name}": torch.empty(shape, device=device) for name, shape in shapes.items()}
    return {"seq_threshold_3D": few, "num_par_softmax_segments": SEGMENTS, **room}
