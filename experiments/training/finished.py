"""Whether a training has anything left to do, told without what training needs: Lightning takes seconds to import."""

from experiments.config import TrainerConfig
from experiments.run import Run
from experiments.runs.steps import whole_checkpoints
from experiments.training.strategy import checkpoint_steps


def complete(run: Run) -> bool:
    """Whether every checkpoint of the training, and of its cooled copy, is there, or none is wanted; says so if it is."""
    if run.supernet:
        print(f"{run.stage}: nothing to train, supernet={run.supernet} is given")
        return True
    steps = checkpoint_steps(run.training)
    there = set(steps) <= whole_checkpoints(run.folder).keys() and (run.cooled is None or complete(run.cooled))
    if there and first(run.trainer):
        print(f"{run.stage}: all {len(steps)} checkpoints are in {run.folder}")
    return there


def first(trainer: TrainerConfig) -> bool:
    """Whether this process is the one that speaks; see ``parallel.is_first``."""
    if trainer.devices * trainer.nodes == 1:
        return True
    from experiments.training.parallel import is_first

    return is_first(trainer)
