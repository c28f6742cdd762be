"""The supernet: one decoder whose every layer holds several mixers. Shapes: B batch, T tokens, D hidden, V vocabulary, L layers."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from supernet.config import SupernetConfig
from supernet.layers import RMSNorm, SwiGLU
from supernet.mixers import MIXERS
from supernet.placement import Placement

DECAYS = ("A_log", "dt_bias")
"""What the names of the delta mixers' decays end with."""


def stored(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a tensor is kept in where weights are in ``dtype``: float32 for decays, as exp(-exp(A_log) ...) needs it."""
    return torch.float32 if name.endswith(DECAYS) else dtype


class Block(nn.Module):
    """Pre-norm: ``x += mixer(norm(x)); x += mlp(norm(x))``. All mixers of the layer share the norms and the MLP."""

    def __init__(self, config: SupernetConfig, layer: int = 0):
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden, config.norm_eps)
        self.mixers = nn.ModuleDict({letter: MIXERS[letter](config) for letter in config.letters(layer)})
        self.mlp_norm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = SwiGLU(config.hidden, config.ffn)

    def forward(self, x: Tensor, letter: str) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> (block output, mixer output), both [B, T, D]."""
        mixed = self.mixers[letter](self.mixer_norm(x))
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), mixed


class Supernet(nn.Module):
    """``model(tokens [B, T], placement) -> logits [B, T, V]``. Weights are as torch makes them until loaded or initialised."""

    def __init__(self, config: SupernetConfig):
        super().__init__()
        unknown = sorted(set(config.mixers) - set(MIXERS))
        if unknown:
            raise ValueError(f"model.mixers {config.mixers!r} has unknown mixer {', '.join(unknown)}: choose from {', '.join(MIXERS)}")
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.hidden)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head = nn.Linear(config.hidden, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight

    def parse(self, placement: str) -> Placement:
        """The placement, checked against this model's layers and mixers (ValueError names what is wrong)."""
        return self.config.placement(placement)

    def cast(self, dtype: torch.dtype) -> "Supernet":
        """All weights to ``dtype`` in place, but for the decays of the delta mixers: see ``stored``."""
        for name, p in self.named_parameters():
            p.data = p.data.to(stored(name, dtype))
        return self

    def features(self, tokens: Tensor, placement: str, recompute: bool = False) -> tuple[Tensor, list[Tensor]]:
        """(hidden states after the final norm [B, T, D], every layer's mixer output: L tensors [B, T, D]).

        ``recompute`` keeps only the input and the outputs of each block for the backward pass, which computes the rest again.
        """
        x, outputs = self.embed(tokens), []
        for block, letter in zip(self.blocks, self.parse(placement), strict=True):
            x, mixed = checkpoint(block, x, letter, use_reentrant=False, preserve_rng_state=False) if recompute else block(x, letter)
            outputs.append(mixed)
        return self.norm(x), outputs

    def forward(self, tokens: Tensor, placement: str) -> Tensor:
        return self.head(self.features(tokens, placement)[0])
