"""How every entry point starts: Hydra composes the options, user errors end in one line and exit code 1."""

import argparse
import dataclasses
import errno
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from experiments.config import Config, check
from experiments.runs.progress import end_bars
from experiments.runs.ranges import range_of
from experiments.runs.records import first_line
from experiments.runs.stopping import Stopped, begin, listening
from supernet.config import SupernetConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)
"""What a user can mend: told in one line."""


def run(task: Callable[[Config], None]) -> None:
    """Compose the configuration from the command line and call ``task`` with it, once per cell of a multirun.

    Exit codes: 0; 1 for an error; 128 + the signal's number where a signal asked to stop. An error that the user can mend is told in one
    line, any other with its traceback. A cell that fails does not keep the others from running.
    """
    # Hydra would otherwise print errors itself, over several lines.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    cells: list[str] = []  # what was wrong with each, '' for nothing

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def main(config: DictConfig) -> None:
        begin()
        cells.append(problem(task, config))
        if cells[-1] and HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"cell {len(cells)} ({' '.join(HydraConfig.get().overrides.task)}): {cells[-1]}", file=sys.stderr, flush=True)

    try:
        sys.argv = listed(sys.argv)
        planning, seconds = "--dry-run" in sys.argv, []
        if planning:
            task = planned(task, seconds)
        with listening(), help_unchecked():
            main()
        if planning and len(cells) > 1:
            from experiments.overview.plan import duration

            print(f"plan of the grid: {len(cells)} cells, {duration(sum(seconds))} one after another")
    except Stopped as stopped:
        end_bars()
        print(stopped, file=sys.stderr)
        sys.exit(stopped.code)
    except USER_ERRORS as error:
        fail(one_line(error))
    failed = [line for line in cells if line]
    if failed:
        fail(failed[0] if len(cells) == 1 else f"{len(failed)} of {len(cells)} cells failed: the same command does what is missing")


@contextmanager
def help_unchecked() -> Iterator[None]:
    """Python 3.14 looks into the help of every argument that is added, and Hydra 1.3's of shell completion is no text, so that no command
    would start (facebookresearch/hydra issue 3121): the look is left out."""
    parser = argparse.ArgumentParser
    own = vars(parser).get("_check_help")
    if hasattr(parser, "_check_help"):
        parser._check_help = lambda self, action: None
    try:
        yield
    finally:
        if own:
            parser._check_help = own
        elif "_check_help" in vars(parser):
            del parser._check_help


def listed(argv: list[str]) -> list[str]:
    """``placements=FFFFF,GGGGG`` as the list it is; Hydra takes a comma for the values of a grid, which is what it means behind -m."""
    if {"-m", "--multirun"} & set(argv):
        return argv
    plain = re.compile(r"placements=(\w+(?:,\w+)+)")
    return [f"placements=[{found[1]}]" if (found := plain.fullmatch(argument)) else argument for argument in argv]


def planned(task: Callable[[Config], None], seconds: list[float]) -> Callable[[Config], None]:
    """The plan of a command in place of the command; Hydra does not get to see the flags. Each cell adds what it takes to ``seconds``."""
    from experiments.overview import plan

    rate = plan.taken_from(sys.argv)

    def tell(config: Config) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(f"cell {len(seconds)} ({' '.join(HydraConfig.get().overrides.task)}):")
        seconds.append(plan.print_plan(task.__name__, config, rate))

    return tell


def problem(task: Callable[[Config], None], config: DictConfig) -> str:
    """Do the work; '' or what went wrong, in one line. The traceback of an error that no user can mend goes to stderr."""
    try:
        task(check(config))
    except USER_ERRORS as error:
        return one_line(error) or first_line(error)
    except Exception as error:
        if disk_trouble(error):
            return one_line(error)
        end_bars()
        traceback.print_exc()
        return first_line(error)
    except SystemExit as ended:
        if isinstance(ended, Stopped) or (ended.code and HydraConfig.get().mode == RunMode.RUN):
            raise
        begin()  # raises Stopped if a signal came: Lightning ends its loop with exit code 0 then
        return f"ended with exit code {ended.code}" if ended.code else ""
    return ""


def fail(line: str) -> NoReturn:
    end_bars()
    print(f"error: {line}", file=sys.stderr)
    sys.exit(1)


def one_line(error: BaseException) -> str:
    """The first cause in one line. Hydra wraps OmegaConf's errors, which say more, and lists choices over several lines."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, ValueError) and (trouble := disk_trouble(error)):
        return f"{trouble}: make room or choose folders with results=... cache=..., then the same command continues"
    key = getattr(error, "full_key", None)
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and key:
        section = key.rpartition(".")[0]
        if not options(section):
            its = f"shapes are given as model.{key.rpartition('.')[2]}" if section == "shapes" else f"a new key is given as +{key}=..."
            return f"unknown option {key}: {its}"
        return f"unknown option {key}: choose from {', '.join(f'{section}.{name}'.strip('.') for name in options(section))}"
    lines = [line.strip() for line in str(error).splitlines()]
    admitted = range_of(Config(scale=""), key) if key and isinstance(error, ValidationError) else None
    noise = ("full_key:", "reference_type", "object_type", "Set the env", "Config search path", "provider=")
    said = " ".join(line for line in lines if line and not line.startswith(noise))
    return (f"{key}: " if key else "") + said + (f": {admitted.words()}" if admitted else "")


def disk_trouble(error: BaseException | None) -> str:
    """What the disk refused, however a library has wrapped it, and where if that is known; '' for any other error."""
    while error is not None:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            if os.strerror(number) in str(error):
                where = getattr(error, "filename", None)
                return f"{os.strerror(number)} at {where}" if where else os.strerror(number)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def options(section: str) -> list[str]:
    """The names of the options in a section such as ``distill`` ('' is the top level); none in one whose keys are free."""
    node = SupernetConfig if section == "model" else Config
    for name in section.split(".") if section and section != "model" else []:
        node = typing.get_type_hints(node).get(name) if dataclasses.is_dataclass(node) else None
    return [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
