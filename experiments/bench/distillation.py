"""Distillation tokens/s at the shapes of the scales, with random weights: teacher, student, three losses, backward, AdamW."""

import time
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from experiments.bench.timing import peak_mib, pick
from experiments.config import check, model_shapes
from experiments.machine import matmul_rate
from experiments.runs.entry import CONF
from experiments.runs.kernels import first_that_works
from supernet.config import SupernetConfig
from supernet.decoder import Supernet
from supernet.mixers import MIXERS
from supernet.ops import kernels
from supernet.ops.losses import activation_error, kl_losses
from supernet.size import backward_flops, forward_flops

SMALL = {"layers": 4, "vocab": 4096}
"""What a CPU takes of each shape: it shows that the benchmark runs, not how fast a GPU is."""


TARGETS = {"0.5b": ">= 60000 tokens/s on an H100 or H200"}

WARM_UP, STEPS = 2, 5


def run(quick: bool = False) -> pd.DataFrame:
    """One row per scale: tokens/s and FLOP/s of training steps, the latter over a measured bf16 matrix product, and the peak memory.

    On a GPU sequences of 4096 tokens; on a CPU a few layers and tokens of each shape.
    """
    device = pick()
    way = first_that_works("auto", device, "bfloat16", (64, 64, 64), Path(".cache") / "kernels")  # heads of 64 at both scales
    kernels.use(way)
    rate, rows = matmul_rate(device, torch.bfloat16), []
    for scale, batch in (("135m", 8), ("0.5b", 4)):
        config, tokens = shapes(scale), 4096
        if device == "cpu":
            config, batch, tokens = config.replace(**SMALL), 1, 64 if quick else 256
        training = Steps(config, batch, tokens, device)
        memory = peak_mib(training.step, device)
        for _ in range(WARM_UP):
            training.step()
        times, flops = [], 0.0
        for _ in range(STEPS):
            start = time.perf_counter()
            flops += batch * training.flops(training.step(), tokens)
            times.append(time.perf_counter() - start)
        rows.append({
            "scale": scale, "layers": config.layers, "vocab": config.vocab, "batch": batch, "length": tokens, "delta rule": way,
            "tokens/s": batch * tokens * STEPS / sum(times), "TFLOP/s": flops / sum(times) / 1e12, "of matmul": flops / sum(times) / rate,
            "peak MiB": memory, "target": TARGETS.get(scale, "") if device == "cuda" else "",
        })  # fmt: skip
    return pd.DataFrame(rows)


def shapes(scale: str) -> SupernetConfig:
    """The model of a scale."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return model_shapes(check(compose("config", [f"scale={scale}"])).model)


class Steps:
    """A supernet and its teacher with random weights, their frozen tensors shared, and what one training step of them does."""

    def __init__(self, config: SupernetConfig, batch: int, tokens: int, device: str, dtype: torch.dtype = torch.bfloat16):
        """``dtype``: bfloat16 trains in mixed precision."""
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(0)
            teacher = Supernet(config.replace(mixers="F")).requires_grad_(False).to(dtype)
            with torch.device("meta"):
                student = Supernet(config)
            for block, frozen in zip(student.blocks, teacher.blocks, strict=True):
                block.mixers = nn.ModuleDict({letter: MIXERS[letter](config) for letter in config.mixers})
                block.mixer_norm, block.mlp_norm, block.mlp = frozen.mixer_norm, frozen.mlp_norm, frozen.mlp
        student.embed, student.norm, student.head = teacher.embed, teacher.norm, teacher.head
        self.teacher, self.student, self.device, self.done = teacher, student, device, 0
        self.mixed = dtype == torch.bfloat16
        self.optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4)
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(config.vocab, (batch, tokens), generator=generator).to(device)
        self.mask = torch.ones_like(self.tokens, dtype=torch.bool)

    def step(self) -> str:
        """One training step; returns its placement: every layer takes another mixer at every step."""
        config = self.student.config
        placement = "".join(config.mixers[(layer + self.done) % len(config.mixers)] for layer in range(config.layers))
        self.done += 1
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            with torch.no_grad():
                target, target_mixed = self.teacher.features(self.tokens, "F" * config.layers)
            hidden, mixed = self.student.features(self.tokens, placement)
            divergences = kl_losses(hidden, target, self.student.head, self.teacher.head, self.mask)
            errors = [activation_error(s, t, self.mask) for s, t in zip(mixed, target_mixed, strict=True)]
        loss = torch.stack(errors).mean() + sum(divergences)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        float(loss.detach())  # waits for the device, as the metrics of a run do
        return placement

    def flops(self, placement: str, tokens: int) -> float:
        """Of one sequence: the teacher's pass, the student's and its backward; the heads forward twice, backward once."""
        config = self.student.config
        backward = sum(backward_flops(config, letter, tokens, True) for letter in placement) + 2.0 * config.vocab * config.hidden * tokens
        return forward_flops(config, "F" * config.layers, tokens) + forward_flops(config, placement, tokens) + backward
