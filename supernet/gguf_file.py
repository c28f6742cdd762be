"""A GGUF file of an all-FA model: its metadata and tensors in our words (the format of llama.cpp; read by its own package ``gguf``).

llama.cpp computes with most keys of ``ARCHITECTURE.*``, so all that is not known here is refused by name.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supernet.config import Rope
from supernet.hugging_face import Shapes, Unsupported, epsilon
from supernet.layers import frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # llama: Mistral too
OF_OTHERS = ("GGUF.", "general.", "tokenizer.", "quantize.", "mradermacher.")  # about the file, its words and how it was made
UNUSED = ("context_length", "vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length", "embedding_length",
          "block_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
          "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
          "rope.scaling.factor", "rope.scale_linear", "attention.sliding_window")  # fmt: skip
NEUTRAL = {  # where a key changes nothing
    **dict.fromkeys(("expert_count", "expert_used_count", "attention.clamp_kqv", "attention.scale", "attention.max_alibi_bias"), (0,)),
    **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping", "logit_scale"), (0, 1)),
    **dict.fromkeys(("rope.scaling.attn_factor", "residual_scale", "embedding_scale"), (1,)),
    "attention.causal": (True,),
}
LAYER = {"attn_norm": "mixer_norm", "ffn_norm": "mlp_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_q": "mixers.F.q_proj", "attn_k": "mixers.F.k_proj", "attn_v": "mixers.F.v_proj",
         "attn_output": "mixers.F.o_proj", "attn_q_norm": "mixers.F.q_norm", "attn_k_norm": "mixers.F.k_norm"}  # fmt: skip
SHARED = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight", "output.weight": "head.weight"}
FREQUENCIES = "rope_freqs.weight"  # what each frequency is divided by: how GGUF says llama3
LLAMA3_CONTEXTS = [2**power for power in range(4, 22)]


def read_file(path: Path) -> tuple[Shapes, dict[str, Any]]:
    """(what the metadata says, the file's own tensors by our names, still quantised). No tensor is read.

    Raises Unsupported naming the key that a Supernet would not compute with. Raises what ``gguf`` does on a damaged file.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    tensors = {our_name(tensor.name): tensor for tensor in reader.tensors}
    kind = keys.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise Unsupported(f"general.architecture = {kind!r} (not {' or '.join(map(repr, ARCHITECTURES))})")
    own = {name.removeprefix(f"{kind}."): value for name, value in keys.items() if name.startswith(f"{kind}.")}
    for name, value in keys.items():
        short = name.removeprefix(f"{kind}.")
        if name.startswith(OF_OTHERS) or short in UNUSED and short in own or name == "split.count" and value in (0, 1):
            continue
        if name in ("split.no", "split.tensors.count"):
            continue
        if short not in NEUTRAL or value not in NEUTRAL[short]:
            raise Unsupported(f"{name} = {value!r}")
    hidden, heads = _needed(own, kind, "embedding_length"), _needed(own, kind, "attention.head_count")
    head_dim = own.get("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head_dim) != head_dim:
            raise Unsupported(f"{kind}.{key} = {own[key]!r} (not the size of a head, {head_dim})")
    fields = {
        "layers": _needed(own, kind, "block_count"),
        "hidden": hidden,
        "ffn": _needed(own, kind, "feed_forward_length"),
        "heads": heads,
        "kv_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab": int(tensors["embed.weight"].shape[1]) if "embed.weight" in tensors else own.get("vocab_size", 0),
        "tied": "head.weight" not in tensors,
        "qkv_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "norm_eps": epsilon(_needed(own, kind, "attention.layer_norm_rms_epsilon")),
        "rope_theta": float(f"{own.get('rope.freq_base', 10_000.0):.7g}"),
    }
    for name in ("kv_heads", "heads", "ffn"):
        if not isinstance(fields[name], int):
            raise Unsupported(f"{kind} has {name} = {fields[name]!r}, one for each layer")
    factors = tensors.pop(FREQUENCIES, None)
    fields |= _scaling(own, kind)
    if factors is not None:
        if "rope_type" in fields:
            raise Unsupported(f"{FREQUENCIES} beside {kind}.rope.scaling.type = 'linear'")
        fields |= _of_factors(read_tensor(factors), fields["rope_theta"])
    return Shapes(fields, own.get("attention.sliding_window") or None), tensors


def _needed(own: dict[str, Any], kind: str, key: str) -> Any:
    if key not in own:
        raise Unsupported(f"no {kind}.{key}")
    return own[key]


def _scaling(own: dict[str, Any], kind: str) -> dict[str, Any]:
    """Linear scaling, as llama.cpp reads it: a factor without a type is linear, a factor of 0 or with type none is nothing."""
    scaling = own.get("rope.scaling.type", "linear")
    if scaling not in ("none", "linear"):
        raise Unsupported(f"{kind}.rope.scaling.type = {scaling!r} (not 'none' or 'linear')")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0))
    return {} if scaling == "none" or factor in (0, 1) else {"rope_type": "linear", "rope_factor": float(f"{factor:.7g}")}


def _of_factors(factors: Tensor, theta: float) -> dict[str, Any]:
    """The ``llama3`` scaling whose factors these are: GGUF keeps them alone, so they are compared with those of Llama 3's low 1 and high 4
    over contexts of a power of two. Raises Unsupported where none gives them."""
    factor = float(f"{factors.max().item():.5g}")  # kept in float32, and a quotient
    if factors.eq(1).all():
        return {}
    plain = frequencies(2 * len(factors), Rope(theta, "default", 1.0, 1.0, 4.0, 1))
    for original in LLAMA3_CONTEXTS:
        scaled = frequencies(2 * len(factors), Rope(theta, "llama3", factor, 1.0, 4.0, original))
        if torch.allclose(plain / scaled, factors, rtol=1e-5):
            return {"rope_type": "llama3", "rope_factor": factor, "rope_low": 1.0, "rope_high": 4.0, "rope_original": original}
    raise Unsupported(f"{FREQUENCIES} of values that are not those of rope_type llama3")


def our_name(name: str) -> str:
    """Our name of a tensor; another name stays, and is refused."""
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found and found[2] in LAYER:
        return f"blocks.{found[1]}.{LAYER[found[2]]}.{found[3]}"
    return SHARED.get(name, name)


def their_name(name: str) -> str:
    """The GGUF name of a tensor of an all-FA Supernet."""
    shared = {ours: theirs for theirs, ours in SHARED.items()}
    if name in shared:
        return shared[name]
    _, layer, rest = name.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{next(theirs for theirs, ours in LAYER.items() if ours == part)}.{kind}"


def read_tensor(tensor: Any) -> Tensor:
    """A tensor of the file in float32. Raises ValueError naming one in a format that is not known."""
    from gguf import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, KeyError, ValueError) as error:
        raise ValueError(f"{tensor.name} is {tensor.tensor_type.name}, which can't be read ({error})") from None
    return torch.from_numpy(np.array(values, dtype=np.float32))


def unpermuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k as rotate-half wants them, [heads * d, D]: files of llama keep the two halves of a head in turn."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
