"""The learning rate over the steps of a training, and how many steps there are."""

import math

from experiments.config import DistillConfig, SftConfig


def cooldown_steps(options: DistillConfig | SftConfig) -> int:
    """Steps beyond the last that make the cooled copy."""
    return round(getattr(options, "cooldown", 0.0) * options.steps)


def total_steps(options: DistillConfig | SftConfig) -> int:
    return options.steps + cooldown_steps(options)


def never_reached(options: DistillConfig | SftConfig) -> list[str]:
    """What to warn of where a training ends before its warm-up does: a sentence, or none. It runs, as a trial of a few steps should."""
    if options.warmup <= options.steps:
        return []
    stage = "sft" if isinstance(options, SftConfig) else "distill"
    return [f"{stage}.warmup={options.warmup} is longer than {stage}.steps={options.steps}, so the rate ends at "
            f"{options.steps / options.warmup:.2g} of {stage}.lr. Lower {stage}.warmup."]  # fmt: skip


def rate_factor(options: DistillConfig | SftConfig, step: int) -> float:
    """What the peak rate is multiplied by at ``step`` (0 is the first): linear warm-up, which reaches 1 at step ``warmup - 1``.

    Then ``cosine`` falls to ``final_lr`` at the last step; ``constant`` stays at 1, and beyond the last step, for the cooled copy, falls
    linearly to ``final_lr``.
    """
    if step < options.warmup:
        return (step + 1) / options.warmup
    if options.schedule == "constant":
        cooled = (step + 1 - options.steps) / max(1, cooldown_steps(options))
        return 1 - (1 - options.final_lr) * min(1.0, max(0.0, cooled))
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
