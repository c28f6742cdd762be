"""The teacher's tokenizer: read, checked against the teacher, and kept beside what was made with it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from supernet.checkpoint import new_folder
from supernet.teacher import open_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model_path: str, gguf_file: str) -> "PreTrainedTokenizerBase":
    """The teacher's own tokenizer. Raises ValueError where it can't be read or knows more tokens than the teacher."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError("tokens need transformers: pip install .[llm]") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, **({"gguf_file": gguf_file} if gguf_file else {}))
    except Exception as error:  # of tokenizers, the hub and gguf, by version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the tokenizer of {model_path!r} can't be loaded ({reason}): put its tokenizer files into that folder") from None
    vocab = open_teacher(model_path, gguf_file)[0].fields["vocab"]
    # Not len(tokenizer): transformers adds tokens of its own, such as a pad token, that no text contains.
    needed = max(tokenizer.vocab_size, *(token + 1 for token in as_prompt(tokenizer, "A prompt.")))
    if needed > vocab:
        raise ValueError(f"the tokenizer of {model_path!r} has {needed} tokens, the model {vocab}: they do not belong together")
    return tokenizer


def as_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of a prompt: as a user's turn where the tokenizer has a chat template, else (a base model) the text as it is."""
    if not tokenizer.chat_template:
        return tokenizer(text, verbose=False)["input_ids"]
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]


def keep_tokenizer(model_path: str, gguf_file: str, folder: Path) -> None:
    """Write the teacher's tokenizer to ``folder``, if it is not there: beside its name, then renamed into place."""
    if not folder.is_dir():
        tokenizer = load_tokenizer(model_path, gguf_file)
        with new_folder(folder) as new:
            tokenizer.save_pretrained(new)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a kept tokenizer, if there is one and ``folder`` is not there."""
    if source.is_dir() and not folder.is_dir():
        with new_folder(folder) as new:
            shutil.copytree(source, new, dirs_exist_ok=True)
