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
    largest: int = 2**31 - 1  # of an integer without ``most``: what counts and sizes fit into everywhere below
    remedy: str = ""  # in place of what the bounds say: "give at least 2, the first and the last"

    def admits(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.huge(value) or not math.isfinite(value):
            return False
        inside = self.least is None or value >= self.least
        return inside and (self.above is None or value > self.above) and (self.most is None or value <= self.most)

    def huge(self, value: Any) -> bool:
        return isinstance(value, int) and self.most is None and value > self.largest

    def words(self, value: Any = None) -> str:
        """What may be given; ``value``: in place of what."""
        if self.choices:
            return f"choose from {', '.join(choice or 'nothing' for choice in self.choices)}"
        if self.huge(value):
            return f"give at most {self.largest}"
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
            for one in found:
                if not admitted.admits(one):
                    raise ValueError(f"{name} is {value!r}: {admitted.words(one)}")


def range_of(options: Any, name: str) -> Range | None:
    """The range of an option by its dotted name, where it has one."""
    section, _, rest = name.partition(".")
    its = next((its for its in dataclasses.fields(options) if its.name == section.partition("[")[0]), None)
    if its is None or not rest:
        return its and its.metadata.get("range")
    inside = getattr(options, section)
    return range_of(inside, rest) if dataclasses.is_dataclass(inside) else its.metadata.get("range")
