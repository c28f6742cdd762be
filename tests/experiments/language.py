"""A random language model with a tokenizer of characters and a chat template, for tests."""

import string
from pathlib import Path

import torch

SYMBOLS = ["<unk>", "<user>", "<end>", *string.printable]
END = SYMBOLS.index("<end>")
SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


def small_model(sharpness=1.0):
    """A random Llama; a large ``sharpness`` makes its sampling pick the most likely token almost surely."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(SYMBOLS),
        max_position_embeddings=256,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, 0.0, 0.3)
    model.lm_head.weight.data.mul_(sharpness)
    return model


def write_folder(path: Path, family: str = "llama", template: bool = True) -> str:
    """A teacher's folder as Hugging Face writes it, of another family if asked, and without a chat template as base models are."""
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    model = small_model()
    if family != "llama":
        shapes = {key: its for key, its in model.config.to_dict().items() if key in SHAPES}
        more = {"sliding_window": 4096} if family == "mistral" else {"head_dim": 8}
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **shapes, **more))
        for p in model.parameters():
            torch.nn.init.normal_(p, 1.0 if p.dim() == 1 else 0.0, 0.3)
    model.save_pretrained(path)
    characters = Tokenizer(models.WordLevel({s: i for i, s in enumerate(SYMBOLS)}, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    characters.add_special_tokens(SYMBOLS[1:3])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters,
        unk_token="<unk>",
        eos_token="<end>",
        **({"chat_template": "<user>{{ messages[0]['content'] }}<end>"} if template else {}),
    ).save_pretrained(path)
    return str(path)
