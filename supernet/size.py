"""Parameters, bytes and FLOPs of a supernet without allocating it: modules are built on torch's meta device."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.mixers import MIXERS


class Uninitialised(TorchFunctionMode):
    """Leaves parameters as they are made: without memory, their initialisation would only import torch's compiler, which takes a second."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def count_parameters(config: SupernetConfig, mixers: str | None = None) -> int:
    """Parameters of the supernet holding ``mixers`` in every layer (default: all of the config's); a tied head counts once."""
    with torch.device("meta"), Uninitialised():
        model = Supernet(config.replace(mixers=mixers or config.mixers))
    return sum(p.numel() for p in model.parameters())


def count_trainable(config: SupernetConfig, mixers: str | None = None) -> int:
    """Parameters of the named mixers over all layers: what distillation trains."""
    with torch.device("meta"), Uninitialised():
        return config.layers * sum(p.numel() for m in mixers or config.mixers for p in MIXERS[m](config).parameters())


def count_bytes(config: SupernetConfig, dtype: torch.dtype, mixers: str | None = None) -> int:
    """Bytes of the weights in ``dtype``."""
    return count_parameters(config, mixers) * dtype.itemsize


def forward_flops(config: SupernetConfig, placement: str, tokens: int, head_tokens: int | None = None) -> float:
    """FLOPs of one forward pass over one sequence of ``tokens``: 2 per weight and token, plus the mixers' own arithmetic.

    ``head_tokens`` positions go through the output head (default: all). Norms, gates and softmax are left out (under 1%).
    """
    layers = sum(layer_flops(config, letter, tokens) for letter in placement)
    return layers + 2.0 * config.vocab * config.hidden * (tokens if head_tokens is None else head_tokens)


def layer_flops(config: SupernetConfig, letter: str, tokens: int) -> float:
    """FLOPs of one layer with one mixer over one sequence of ``tokens``."""
    weights = layer_parameters(config, letter) + 3 * config.hidden * config.ffn
    return 2.0 * tokens * weights + MIXERS[letter].mixing_flops(config, tokens)


@cache
def layer_parameters(config: SupernetConfig, letter: str) -> int:
    """Parameters of one mixer of one layer."""
    with torch.device("meta"), Uninitialised():
        return sum(p.numel() for p in MIXERS[letter](config).parameters())


def backward_flops(config: SupernetConfig, letter: str, tokens: int, trained: bool) -> float:
    """FLOPs of one layer's backward pass over one sequence: gradients of what went in, through frozen weights too, and of the mixer's
    weights where it is ``trained``; attention scores and states cost twice their forward."""
    own = 2.0 * tokens * layer_parameters(config, letter) if trained else 0.0
    return layer_flops(config, letter, tokens) + MIXERS[letter].mixing_flops(config, tokens) + own


def layer_saved_bytes(config: SupernetConfig, letter: str, batch: int, tokens: int, itemsize: int) -> float:
    """Bytes that autograd keeps of one layer between forward and backward, its MLP and norms frozen, its weights left out.

    ``itemsize``: bytes of an activation, 4 or, under bf16 autocast, 2. Counted on the plain torch path (a test counts again); kernels that
    keep less in a CUDA build make it an upper bound.
    """
    norms_and_mlp = 2 * 4 * (config.hidden + 1) + 3 * config.ffn * itemsize
    return batch * tokens * norms_and_mlp + MIXERS[letter].saved_bytes(config, batch, tokens, itemsize)
