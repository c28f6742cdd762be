"""Whether a training has anything left to do, told without what training needs: Lightning takes seconds to import."""

from dataclasses import replace

from experiments.config import Config, run_dir, stage_options
from experiments.runs.steps import checkpoint_dir
from experiments.training.strategy import checkpoint_steps


def complete(config: Config) -> bool:
    """Whether every checkpoint of the run's training is there, or none is wanted; says so if it is."""
    if config.supernet:
        print(f"{config.stage}: nothing to train, supernet={config.supernet} is given")
        return True
    folder, steps = run_dir(config), checkpoint_steps(stage_options(config))
    there = all((checkpoint_dir(folder, step) / "meta.json").exists() for step in steps)
    if config.stage == "distill" and config.distill.cooldown:
        there = there and complete(replace(config, stage="cooled"))
    if there and first(config):
        print(f"{config.stage}: all {len(steps)} checkpoints are in {folder}")
    return there


def first(config: Config) -> bool:
    """Whether this process is the one that speaks; see ``parallel.is_first``."""
    if config.trainer.devices * config.trainer.nodes == 1:
        return True
    from experiments.training.parallel import is_first

    return is_first(config)
