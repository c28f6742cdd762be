"""Benchmark: decoding by the engine against transformers' own ``generate`` with its cache, SmolLM2-135M in all-FA, in one process.

``timed`` decodes a batch of one placement at one length of context; other benchmarks of decoding use it too.
"""

import time

import pandas as pd
import torch
from torch import Tensor

from supernet.decoder import Supernet
from supernet.generate import extend, prefill
from supernet.state import States
from supernet.teacher import from_hugging_face, hugging_face_model, smollm2_gguf

REPEATS = 5


@torch.inference_mode()
def timed(model: Supernet, placement: str, context: Tensor, steps: int) -> tuple[Tensor, float, float]:
    """Prefill of ``context`` [B, T] and ``steps`` greedy tokens of each row: (tokens [B, steps], seconds of the prefill, of the rest).

    The first token comes from the prefill, so the rest are ``steps - 1`` calls.
    """
    states, found = States(model), []
    rows = [states.join(placement, context.shape[1] + steps) for _ in context]
    started = _now(model)
    logits = prefill(model, states, rows, list(context))
    ready = _now(model)
    for step in range(steps):
        found.append(logits.argmax(-1, keepdim=True))
        if step + 1 < steps:
            logits = extend(model, states, rows, found[-1])
    return torch.cat(found, 1), ready - started, _now(model) - ready


def run(quick: bool = False) -> pd.DataFrame:
    """Interleaved repeats; the ratio is theirs over ours in each repeat: its median, smallest and largest. Above 1 the engine is faster."""
    path, gguf = smollm2_gguf()
    theirs, ours = hugging_face_model(path, gguf, torch.float32), from_hugging_face(path, gguf, 128)
    generator, rows = torch.Generator().manual_seed(0), []
    for batch, context, steps in ((1, 16, 6),) if quick else ((1, 64, 48), (1, 512, 48), (4, 128, 32)):
        tokens = torch.randint(ours.config.vocab, (batch, context), generator=generator)
        ratios, rates = [], []
        for repeat in range(2 if quick else REPEATS + 1):  # the first warms up
            mine, *seconds = timed(ours, "F" * ours.config.layers, tokens, steps)
            started = _now(ours)
            other = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=steps, min_new_tokens=steps,
                                    do_sample=False, pad_token_id=0)  # fmt: skip
            if repeat:
                ratios.append((_now(ours) - started) / sum(seconds))
                rates.append(batch * (steps - 1) / seconds[1])
        same = float((mine == other[:, context:]).float().mean())  # min_new_tokens rules the end token out there
        middle = pd.Series(ratios)
        rows.append({"batch": batch, "context": context, "new": steps, "tokens/s after the first": pd.Series(rates).median(),
                     "ratio": middle.median(), "least": middle.min(), "most": middle.max(), "same tokens": same})  # fmt: skip
    return pd.DataFrame(rows)


def _now(model: Supernet) -> float:
    if model.embed.weight.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
