"""Whether greedy decoding says a given answer, and how likely the answer is: all placements in one pass of the sweep engine.

The likeliest token is taken at every step. So decoding says the answer exactly where each of its tokens is the likeliest after the prompt
and the tokens before it, which one pass over the answer tells. Shapes: P placements, n items, R rows of one call of the head.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.decoder import Block, Supernet
from supernet.scoring import Counts, Item, Trie, score_chunk


@torch.inference_mode()
def match_chunk(
    model: Supernet, trie: Trie, items: list[Item], block_at: Callable[[int], Block] | None = None
) -> tuple[np.ndarray, np.ndarray, Counts]:
    """As ``scoring.score_chunk``, with the tokens after an item's prompt as its answer: its log-likelihood in nats, float64 [P, n], and
    whether greedy decoding says it, bool [P, n]. Of equally likely tokens the first counts, as in ``generate``."""
    device = model.embed.weight.device

    def measure(columns: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
        answers = torch.cat([items[i].tokens[items[i].prompt :] for i in columns]).to(device)

        def both(hidden: Tensor, target: Tensor) -> Tensor:
            logits = model.head(hidden).float()
            right = logits.argmax(-1) == answers[target]
            return torch.stack([-F.cross_entropy(logits, answers[target], reduction="none"), right.float()], -1)

        return both

    sums, counts = score_chunk(model, trie, items, block_at, measure)
    lengths = np.array([len(item.tokens) - item.prompt for item in items])
    return sums[..., 0], sums[..., 1] == lengths, counts
