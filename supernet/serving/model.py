"""The model that vLLM runs: the project's Supernet, whose rows take the mixers of their placements over vLLM's pages.

Shapes: N tokens of a batch, of all its rows one after another; D hidden, V vocabulary; R rows, T new tokens of each.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata

from supernet import checkpoint
from supernet.mixers import MIXERS
from supernet.serving.mixing import attend, attends, recur
from supernet.serving.pages import LayerSpec, state_views
from supernet.serving.rows import placements_of


class Builder(AttentionMetadataBuilder):
    """There is one per layer and step, so it does nothing: the model reads what all layers share once."""

    def __init__(self, *args: Any):
        super().__init__(*args)

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False) -> Any:
        return common_attn_metadata


class Backend(AttentionBackend):
    supported_dtypes = [torch.float32, torch.bfloat16, torch.float16]

    @staticmethod
    def get_name() -> str:
        return "PLACEMENTS"

    @staticmethod
    def get_impl_cls() -> type:
        raise NotImplementedError("the model attends itself")

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        return Builder

    @classmethod
    def is_ssm(cls) -> bool:
        return True


class Pages(nn.Module, AttentionLayerBase):
    """The pages of one layer. vLLM allocates and binds them."""

    def __init__(self, config: Any, layer: int, vllm_config: VllmConfig):
        super().__init__()
        self.config, self.layer = config, layer
        self.name = f"model.layers.{layer}.pages"
        self.views: dict[str, Any] = {}  # letter -> what its mixer takes
        vllm_config.compilation_config.static_forward_context[self.name] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        return Backend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> LayerSpec:
        return LayerSpec.of(self.config, self.layer, vllm_config)

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        self.kv_cache = kv_cache
        for letter in self.config.letters(self.layer):
            own = MIXERS[letter]
            self.views[letter] = kv_cache if attends(own) else state_views(kv_cache, own.state_shapes(self.config, 1, kv_cache.dtype))


@dataclass
class Part:
    """Rows of a step that have the same number of new tokens and the same mixer in a layer."""

    rows: list[int]
    starts: list[int]  # tokens that each has seen before
    tokens: Tensor  # [R, T]: where its new ones are in the batch


class SupernetForCausalLM(nn.Module):
    is_text_generation_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        raw = vllm_config.model_config.hf_config.raw
        # Our reader knows every format and checks each tensor; vLLM's own iterator of weights is not used.
        folder, teacher = raw.get("checkpoint", vllm_config.model_config.model), raw.get("teacher")
        net = checkpoint.load(Path(folder), teacher).requires_grad_(False)
        self.net = net.cast(vllm_config.model_config.dtype).to(vllm_config.device_config.device)
        self.config = net.config
        self.pages = nn.ModuleList(Pages(net.config, layer, vllm_config) for layer in range(net.config.layers))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return {name for name, _ in self.named_parameters()}  # done already

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.net.embed(input_ids)

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None, **_: Any
    ) -> Tensor:
        """input_ids [N] -> hidden states after the last norm [N, D]."""
        x = self.net.embed(input_ids) if inputs_embeds is None else inputs_embeds
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures memory
            return self.net.norm(x)
        any_layer = metadata[self.pages[0].name]
        rows = any_layer.num_reqs
        bounds, lengths = any_layer.query_start_loc_cpu[: rows + 1].tolist(), any_layer.seq_lens[:rows].tolist()
        parts: dict[tuple[str, ...], dict[str, list[Part]]] = {}
        for block, pages, column in zip(self.net.blocks, self.pages, zip(*placements_of(rows), strict=True), strict=True):
            if column not in parts:
                parts[column] = _parts(column, bounds, lengths, x.device)
            table, normed, mixed = metadata[pages.name].block_table_tensor, block.mixer_norm(x), torch.zeros_like(x)
            for letter, its in parts[column].items():
                mixer, over = block.mixers[letter], attend if attends(MIXERS[letter]) else recur
                for part in its:
                    new = over(mixer, normed[part.tokens], part.starts, pages.views[letter], table[part.rows])
                    mixed[part.tokens] = new.to(x.dtype)
            x = x + mixed
            x = x + block.mlp(block.mlp_norm(x))
        return self.net.norm(x)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[N, D] -> [N, V]."""
        return self.net.head(hidden_states)


def _parts(column: tuple[str, ...], bounds: list[int], lengths: list[int], device: torch.device) -> dict[str, list[Part]]:
    """A layer's rows by mixer, and by how many new tokens they have: all that decode are one part."""
    found: dict[tuple[str, int], list[int]] = {}
    for row, letter in enumerate(column):
        if (new := bounds[row + 1] - bounds[row]) > 0:
            found.setdefault((letter, new), []).append(row)
    parts: dict[str, list[Part]] = {}
    for (letter, new), rows in found.items():
        tokens = torch.tensor([bounds[row] for row in rows])[:, None] + torch.arange(new)
        parts.setdefault(letter, []).append(Part(rows, [lengths[row] - new for row in rows], tokens.to(device)))
    return parts
