"""How an evaluation opens what it asks: whole, or a layer at a time; and whether that fits this machine's memory."""

from collections.abc import Callable
from pathlib import Path

import torch

from experiments.evaluation.options import Options
from experiments.machine import free_memory
from experiments.overview.plan import fits, size, sweep_memory
from experiments.runs.sources import open_model, ready, use_kernels
from experiments.runs.stopping import raise_if_asked
from experiments.sweeping.weights import Weights, two_layers_fit, weight_bytes
from supernet.decoder import Supernet
from supernet.reader import LayerReader, open_layers
from supernet.streaming import Traffic, streamed
from supernet.teacher import load_teacher


def opener(folders: dict[int, Path], teacher: Path | None, dtype: str | None, device: str, options: Options) -> Callable[[int], Weights]:
    """What gives the weights of a step; what it gave before is not to be used any more. ``dtype``: None is as they are stored."""

    def opened(step: int) -> Weights:
        reader = open_layers(folders[step], teacher)
        check_room(reader, dtype, device, options)
        return by_layer(reader, dtype, device, options) if options.stream else whole(open_model(folders[step], teacher, dtype, device))

    return opened


def opener_of_teacher(folder: Path, dtype: str | None, device: str, options: Options) -> Callable[[int], Weights]:
    """The same of the frozen teacher, which has one step."""

    def opened(_: int) -> Weights:
        if options.stream:
            return by_layer(open_layers(folder), dtype, device, options)
        return whole(ready(load_teacher(folder), dtype, device))

    return opened


def whole(model: Supernet) -> Weights:
    return Weights(model, None, 0)


def by_layer(reader: LayerReader, dtype: str | None, device: str, options: Options) -> Weights:
    dtype, budget = dtype or stored_dtype(reader), int(options.memory_gib * 2**30)
    kind = getattr(torch, dtype)
    use_kernels(reader.config, dtype, device)
    model, block_at = streamed(reader, kind, device, two_layers_fit(reader, kind, budget), Traffic(), before=raise_if_asked)
    return Weights(model, block_at, 0, weight_bytes(reader, kind, budget))


def memory_in_words(reader: LayerReader, dtype: str | None, device: str, options: Options) -> str:
    """What --dry-run says of memory: weights and activations, and whether they fit here."""
    weights, words = weights_at_once(reader, dtype, options)
    budget = options.memory_gib * 2**30
    needed = max(weights, budget) if options.stream else weights + budget
    return f"{words} of weights, {size(budget)} of activations; {fits(needed, device)}"


def check_room(reader: LayerReader, dtype: str | None, device: str, options: Options) -> None:
    """Raise ValueError where the weights alone are more than what a CPU has free: the system would kill the command without a word."""
    weights, _ = weights_at_once(reader, dtype, options)
    try:
        there = free_memory() if device == "cpu" else None
    except ValueError:  # no Linux
        there = None
    if there is not None and weights > there:
        remedy = "take a machine with more" if options.stream else "stream=true holds one layer at a time, else take a machine with more"
        raise ValueError(f"the weights take {size(weights)} and only {size(there)} of memory are free: {remedy}")


def weights_at_once(reader: LayerReader, dtype: str | None, options: Options) -> tuple[float, str]:
    """Bytes, and what is said of them."""
    return sweep_memory(reader.config, getattr(torch, dtype or stored_dtype(reader)), options.stream)


def stored_dtype(reader: LayerReader) -> str:
    return str(reader.tensors["embed.weight"].dtype).removeprefix("torch.")
