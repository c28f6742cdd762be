"""Hydra's launchers ``local`` and ``slurm``. Hydra finds them here because it looks for plugins in the package ``hydra_plugins`` alone.

Hydra imports this file at every start of every command, so what needs torch is imported when a grid starts.
"""

import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from experiments.grids.cells import Grid


class GridLauncher(Launcher):
    """From Hydra's list of cells to a grid; the launchers differ in how they run it."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    @abstractmethod
    def run(self, grid: "Grid") -> list[str]:
        """Run the cells; a line for each that is not done."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from experiments.grids.cells import make_grid

        composed = [self.loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides]
        for config in composed:
            with open_dict(config):
                del config["hydra"]
        given = self.config.hydra.overrides
        typed = [*given.task, *(o for o in given.hydra if o.startswith("hydra.launcher."))]
        command = sys.modules["__main__"].__spec__.name.removeprefix("experiments.").removesuffix(".__main__")
        try:
            grid = make_grid(command, typed, type(self).__name__.lower(), job_overrides, composed)
            problems = self.run(grid)
        except ValueError as error:
            raise HydraException(str(error)) from error
        for line in problems:
            print(line, file=sys.stderr)
        if problems:
            raise HydraException(f"{len(problems)} of {len(grid.cells)} cells are not done: the same command continues")
        return [JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED) for overrides in job_overrides]


class Local(GridLauncher):
    def run(self, grid: "Grid") -> list[str]:
        from experiments.grids.local import run_local

        return run_local(grid, **self.options)


class Slurm(GridLauncher):
    def run(self, grid: "Grid") -> list[str]:
        from experiments.grids.slurm import check_options, run_slurm

        return run_slurm(grid, check_options(self.options))
