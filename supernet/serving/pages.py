"""Pages: each layer is a group of its own, in which a request holds what its mixer there needs.

vLLM usually makes a few groups of many layers, and a page of a group lies in all of its layers. A request with full attention in 12 of
48 layers would pay for 48. Here a page is of one layer: full attention takes one per ``block_size`` tokens, a window gives back what left
it, a delta rule takes one page, which holds its state. A page has the size of the largest state, rounded up to whole tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from supernet.config import SupernetConfig
from supernet.mixers import MIXERS
from supernet.placement import Placement
from supernet.serving.mixing import attends

MULTIPLE = 16
"""Tokens of a page: a multiple of what attention kernels take."""

PLACEMENTS: dict[str, Placement] = {}
"""Of every request in the engine, by its id; kept by the scheduler, in the process of the engine core."""


Shapes = list[tuple[tuple[int, ...], torch.dtype]]
"""Of what a delta rule keeps of a request: ``state_shapes`` of its mixer."""


def page_tokens(config: SupernetConfig, dtype: torch.dtype) -> int:
    """Tokens of keys and values in a page."""
    per_token = 2 * config.kv_heads * config.head_dim * dtype.itemsize
    largest = max(
        (_bytes(MIXERS[letter].state_shapes(config, 1, dtype)) for letter in config.fixed or config.mixers if not attends(MIXERS[letter])),
        default=0,
    )
    return MULTIPLE * max(ceil(largest / per_token / MULTIPLE), 1)


def _bytes(shapes: Shapes) -> int:
    return sum(_aligned(shape, dtype) for shape, dtype in shapes)


def _aligned(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor, up to where one of float32 may follow."""
    return ceil(prod(shape) * dtype.itemsize / 4) * 4


def state_views(pages: Tensor, shapes: Shapes) -> list[Tensor]:
    """vLLM's pages of a layer [P, kv_heads, tokens, 2 d] as tensors [P, *shape], one after another from the start of every page."""
    size = pages.element_size()
    raw = torch.empty(0, dtype=torch.int8, device=pages.device).set_(pages.untyped_storage())
    raw = raw.as_strided((pages.shape[0], pages[0].numel() * size), (pages.stride(0) * size, 1), pages.storage_offset() * size)
    views, at = [], 0
    for shape, dtype in shapes:
        views.append(raw[:, at : at + prod(shape) * dtype.itemsize].view(dtype).unflatten(1, shape))
        at += _aligned(shape, dtype)
    return views


@dataclass(frozen=True, kw_only=True)
class LayerSpec(FullAttentionSpec):
    """Pages of one layer. Specs of two layers differ in ``layer``, so that each layer is a group of its own."""

    layer: int
    window: int  # tokens
    in_flight: int  # tokens that are computed before pages are given back

    @classmethod
    def of(cls, config: SupernetConfig, layer: int, vllm_config: VllmConfig) -> "LayerSpec":
        dtype = vllm_config.model_config.dtype
        return cls(
            block_size=page_tokens(config, dtype), num_kv_heads=config.kv_heads, head_size=config.head_dim, dtype=dtype,
            layer=layer, window=config.window, in_flight=vllm_config.max_in_flight_tokens,
        )  # fmt: skip

    @classmethod
    def merge(cls, specs: list["LayerSpec"]) -> "LayerSpec":
        """The inherited one looks at the fields it knows only, and would put all layers into one group."""
        assert all(spec == specs[0] for spec in specs), "each layer has pages of its own"
        return specs[0]

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        return all(spec == self for spec in kv_cache_specs.values())

    def tokens_held(self, letter: str, tokens: int) -> int:
        """Of ``tokens``, those whose pages a request holds at one time: what an admitted request can ask for at most."""
        if not attends(MIXERS[letter]):
            return 1
        if not MIXERS[letter].windowed:
            return tokens
        return min(tokens, self.window - 1 + self.in_flight + self.block_size)  # a window may begin in the middle of a page


class LayerManager(FullAttentionManager):
    """The pages of one layer, by what mixer each request has there."""

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence, *args: Any, apply_admission_cap: bool = False, **kwargs: Any
    ) -> int:
        letter = PLACEMENTS[request_id][self.kv_cache_spec.layer]
        if apply_admission_cap or not attends(MIXERS[letter]):
            num_tokens = self.kv_cache_spec.tokens_held(letter, num_tokens)
        return super().get_num_blocks_to_allocate(request_id, num_tokens, new_computed_blocks, *args, **kwargs)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list:
        letter = PLACEMENTS[request_id][self.kv_cache_spec.layer]
        return super().allocate_new_blocks(request_id, num_tokens if attends(MIXERS[letter]) else 1, num_tokens_main_model)

    def remove_skipped_blocks(self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None) -> None:
        """Give back the pages whose tokens no later token of the request sees."""
        placement = PLACEMENTS.get(request_id)
        if placement and attends(MIXERS[letter := placement[self.kv_cache_spec.layer]]) and MIXERS[letter].windowed:
            gone = max(0, processed_computed_tokens - self.kv_cache_spec.window + 1) // self.block_size
            self._remove_blocks_in_range(request_id, 0, min(gone, len(self.req_to_blocks[request_id])))


KVCacheSpecRegistry._ensure_registered()  # vLLM registers its own only into an empty registry
KVCacheSpecRegistry.register(LayerSpec, LayerManager, LayerSpec)
