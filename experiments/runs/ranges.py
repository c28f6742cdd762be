"""The range of an option, kept beside its field, and the one check of all of them."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Range:
    """What an option may be; of a list or a dict, every value in it. Bounds are inclusive but for ``above``."""

    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    remedy: str = ""  # in place of what the bounds say: "give at least 2, the first and the last"

    def admits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        inside = math.isfinite(value) and (self.least is None or value >= self.least)
        return inside and (self.above is None or value > self.above) and (self.most is None or value <= self.most)

    def words(self) -> str:
        if self.choices:
            return f"choose from {', '.join(self.choices)}"
        if self.remedy:
            return self.remedy
        if self.most is not None:
            return f"give {self.least if self.above is None else f'more than {self.above}'} to {self.most}"
        return "give a positive number" if self.above == 0 or self.least == 1 else f"give a number of {self.least} or more"


def option(default: Any | Callable[[], Any], **bounds: Any) -> Any:
    """A dataclass field with a range; ``default`` may be what makes it (list). ``bounds`` are the fields of Range."""
    made = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"range": Range(**bounds)})


def check_ranges(options: Any, section: str = "") -> None:
    """Raise ValueError for the first option of a dataclass, sections included, that its range does not admit: name, value, remedy."""
    for its in dataclasses.fields(options):
        value, name = getattr(options, its.name), f"{section}{its.name}"
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif admitted := its.metadata.get("range"):
            found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if not all(admitted.admits(one) for one in found):
                raise ValueError(f"{name} is {value!r}: {admitted.words()}")
