"""Peak memory of distillation: ours, ours with recomputed blocks, and two separate models with everything trained.

Each set-up takes four steps with random weights in a process of its own, which draw every mixer; AdamW's state is there then.
"""

import subprocess
import sys

import pandas as pd
import torch
from torch import Tensor

from experiments.bench.distillation import shapes
from experiments.machine import peak_memory
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.ops.losses import activation_error, kl_losses

SETUPS = ("shared", "shared, recompute", "two models")


def run(quick: bool = False) -> pd.DataFrame:
    """One row per scale and set-up at batch 2 x 256 tokens, bfloat16 mixed (``quick``: 135m of 4 layers); resident GiB, Linux only."""
    rows = []
    for scale in ("135m",) if quick else ("135m", "0.5b"):
        for setup in SETUPS:
            command = [sys.executable, "-m", "experiments.bench.memory", scale, setup, "4" if quick else str(shapes(scale).layers)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"scale": scale, "set-up": setup, "peak GiB": float(done.stdout.split()[-1])})
    table = pd.DataFrame(rows)
    table["of two models"] = table["peak GiB"] / table.groupby("scale")["peak GiB"].transform("last")
    return table


def models(config: SupernetConfig, separate: bool) -> tuple[Supernet, Supernet]:
    """(teacher in bfloat16, student). ``separate``: the student has every tensor of its own, in float32 and trained."""
    torch.manual_seed(0)
    teacher = Supernet(config.replace(mixers="F")).requires_grad_(False).cast(torch.bfloat16)
    if separate:
        return teacher, Supernet(config)
    with torch.device("meta"):
        student = Supernet(config)
    student.embed, student.norm, student.head = teacher.embed, teacher.norm, teacher.head
    for block, frozen in zip(student.blocks, teacher.blocks, strict=True):
        block.mixers = block.mixers.to_empty(device="cpu")
        for p in block.mixers.parameters():
            torch.nn.init.normal_(p, std=0.02)
        block.mixer_norm, block.mlp_norm, block.mlp = frozen.mixer_norm, frozen.mlp_norm, frozen.mlp
    return teacher, student


def train(teacher: Supernet, student: Supernet, tokens: Tensor, recompute: bool, steps: int = 4) -> None:
    """Optimizer steps of the three losses; the mixers take turns, so that ``steps`` of as many as there are draw each at every layer."""
    config, mask = student.config, torch.ones_like(tokens, dtype=torch.bool)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4)
    for step in range(steps):
        placement = "".join(config.mixers[(layer + step) % len(config.mixers)] for layer in range(config.layers))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target, target_mixed = teacher.features(tokens, "F" * config.layers)
            hidden, mixed = student.features(tokens, placement, recompute)
            divergences = kl_losses(hidden, target, student.head, teacher.head, mask)
            errors = [activation_error(s, t, mask) for s, t in zip(mixed, target_mixed, strict=True)]
        optimizer.zero_grad(set_to_none=True)
        (torch.stack(errors).mean() + sum(divergences)).backward()
        optimizer.step()


def main() -> None:
    scale, setup, layers = sys.argv[1:]
    config = shapes(scale).replace(layers=int(layers))
    tokens = torch.randint(config.vocab, (2, 256), generator=torch.Generator().manual_seed(1))
    train(*models(config, setup == "two models"), tokens, recompute="recompute" in setup)
    print(peak_memory() / 2**30)


if __name__ == "__main__":
    main()
