"""How every entry point starts: Hydra composes the options, user errors end in one line and exit code 1."""

import dataclasses
import errno
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiments.config import Config, check
from supernet.config import SupernetConfig

CONF = Path(__file__).resolve().parent.parent / "conf"


def run(task: Callable[[Config], None]) -> None:
    """Compose the configuration from the command line and call ``task`` with it (once per cell of a multirun)."""
    # Hydra would otherwise print errors itself, over several lines.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def main(config: DictConfig) -> None:
        try:
            task(check(config))
        except (ValueError, OSError, OmegaConfBaseException) as error:
            fail(error)

    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        sys.exit(130)


def fail(error: BaseException) -> NoReturn:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(1)


def one_line(error: BaseException) -> str:
    """The first cause in one line. Hydra wraps OmegaConf's errors, which say more, and lists choices over several lines."""
    while isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        where = f" at {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}: make room or choose folders with results=... cache=..., then the same command continues"
    key = getattr(error, "full_key", None)
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and key:
        section = key.rpartition(".")[0]
        return f"unknown option {key}: choose from {', '.join(f'{section}.{name}'.strip('.') for name in options(section))}"
    lines = [line.strip() for line in str(error).splitlines()]
    noise = ("full_key:", "reference_type", "object_type", "Set the env", "Config search path", "provider=")
    return (f"{key}: " if key else "") + " ".join(line for line in lines if line and not line.startswith(noise))


def options(section: str) -> list[str]:
    """The names of the options in a section such as ``distill`` ('' is the top level)."""
    node = SupernetConfig if section == "model" else typing.get_type_hints(Config)[section] if section else Config
    return [field.name for field in dataclasses.fields(node)]
