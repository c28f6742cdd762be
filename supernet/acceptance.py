"""Every placement as a draft of all-FA, in one sweep: how likely its next token is accepted, at every target position.

A draft from q is accepted by p with probability ``sum_v min(p(v), q(v))`` (Leviathan et al. 2023, arXiv 2211.17192, theorem 3.5), here
after the true tokens before it. The sweep engine evaluates the drafts; all-FA goes through the layers beside them, once per item.
Shapes: P placements, n items, D hidden, V vocabulary, R rows of one call of the head.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from supernet.decoder import Block, Supernet
from supernet.scoring import Counts, Item, Trie, score_chunk


@torch.inference_mode()
def acceptance_chunk(
    model: Supernet, trie: Trie, items: list[Item], block_at: Callable[[int], Block] | None = None
) -> tuple[np.ndarray, Counts]:
    """As ``scoring.score_chunk``, but of each item the sum over its target positions of the acceptance, [P, n]; 1 a token is all-FA itself.

    Raises ValueError for a model without full attention.
    """
    config = model.config
    full = config.placement("F" * config.layers)
    reference = [model.embed(item.tokens[None, :-1].to(model.embed.weight.device)) for item in items]

    def with_reference(layer: int) -> Block:
        block = block_at(layer) if block_at else model.blocks[layer]
        for i, x in enumerate(reference):
            reference[i] = block(x, full[layer])[0]
        if layer == config.layers - 1:
            for i, (x, item) in enumerate(zip(reference, items, strict=True)):
                reference[i] = model.norm(x[0, item.prompt - 1 :])
        return block

    def measure(columns: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        verifier = torch.cat([reference[i] for i in columns])  # [targets, D]

        def overlap(hidden: Tensor, target: Tensor) -> Tensor:
            p, q = (model.head(h).float().softmax(-1) for h in (verifier[target], hidden))
            return torch.minimum(p, q).sum(-1)

        return overlap

    return score_chunk(model, trie, items, with_reference, measure)
