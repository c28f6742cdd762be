"""The model that vLLM runs: the project's Supernet, whose rows take the mixers of their placements over vLLM's pages.

Shapes: N tokens of a batch, of all its rows one after another; D hidden, V vocabulary; R rows, T new tokens of each.
"""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata

from supernet import checkpoint
from supernet.mixers import MIXERS
from supernet.ops import kernels
from supernet.serving import mixing
from supernet.serving.mixing import attends
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
            shapes = [] if attends(own) else own.state_shapes(self.config, 1, kv_cache.dtype)
            shapes = [(kernels_for(kv_cache.device).shape_of_state(shape), dtype) for shape, dtype in shapes]
            self.views[letter] = state_views(kv_cache, shapes) if shapes else kv_cache


def kernels_for(device: torch.device) -> ModuleType:
    """What mixes over pages there."""
    if device.type == "cpu":
        kernels.use("numba")  # vLLM's CPU build comes with numba; 3 to 5 times faster than torch
        return mixing
    from supernet.serving import gpu  # vLLM's kernels, which need Triton

    return gpu


class SupernetForCausalLM(nn.Module):
    is_text_generation_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        raw = vllm_config.model_config.hf_config.raw
        # Our reader knows every format and checks each tensor; vLLM's own iterator of weights is not used.
        folder, teacher = raw.get("checkpoint", vllm_config.model_config.model), raw.get("teacher")
        net = checkpoint.load(Path(folder), teacher).requires_grad_(False)
        device = vllm_config.device_config.device
        self.net = net.cast(vllm_config.model_config.dtype).to(device)
        self.config, self.paged = net.config, kernels_for(device)
        self.step, self.plan = None, []  # what ``parts`` found last
        self.pages = nn.ModuleList(Pages(net.config, layer, vllm_config) for layer in range(net.config.layers))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return {name for name, _ in self.named_parameters()}  # done already

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.net.embed(input_ids)

    @staticmethod
    def get_model_state_cls() -> type:
        from supernet.serving.runner2 import PlacementState  # vLLM's second model runner asks; it needs Triton

        return PlacementState

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None, **_: Any
    ) -> Tensor:
        """input_ids [N] -> hidden states after the last norm [N, D]. More tokens than the batch has are padding."""
        x = self.net.embed(input_ids) if inputs_embeds is None else inputs_embeds
        for layer, block in enumerate(self.net.blocks):
            mixed = torch.zeros_like(x)
            mix_layer(self, layer, block.mixer_norm(x), mixed)
            x = x + mixed
            x = x + block.mlp(block.mlp_norm(x))
        return self.net.norm(x)

    def parts(self, layer: int, metadata: CommonAttentionMetadata) -> list[Any]:
        """A layer's rows by mixer. They are the same in the next step unless a row joins, leaves or reads its prompt."""
        if layer == 0:
            rows = metadata.num_reqs
            bounds = metadata.query_start_loc_cpu[: rows + 1].tolist()
            lengths = metadata.seq_lens_cpu_upper_bound[:rows].tolist()  # exact, as nothing is speculated
            starts = [n - (end - begin) for n, begin, end in zip(lengths, bounds, bounds[1:], strict=False)]
            step = (placements_of(rows), bounds, [start == 0 for start in starts] if self.paged is not mixing else starts)
            if step != self.step:
                columns, device = list(zip(*step[0], strict=True)), self.net.embed.weight.device
                plans = {column: self.paged.plan(column, bounds, starts, device) for column in set(columns)}
                self.step, self.plan = step, [plans[column] for column in columns]
        return self.plan[layer]

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[N, D] -> [N, V]."""
        return self.net.head(hidden_states)


@eager_break_during_capture
def mix_layer(model: SupernetForCausalLM, layer: int, normed: Tensor, mixed: Tensor) -> None:
    """Fill ``mixed`` [N, D] with what the mixers of a layer make of ``normed`` [N, D]. CUDA graphs end before it and go on after it:
    which mixers a step takes depends on its requests."""
    if not (metadata := get_forward_context().attn_metadata):
        return  # vLLM measures memory
    pages, block = model.pages[layer], model.net.blocks[layer]
    metadata = metadata[pages.name]
    for part in model.parts(layer, metadata):
        new = model.paged.mix(block.mixers[part.letter], normed[part.tokens], part, pages.views[part.letter], metadata)
        mixed[part.tokens] = new.to(mixed.dtype)
