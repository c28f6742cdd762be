"""What a request may ask for: letters, or a preset by its name. Imports without torch and without vLLM.

vLLM makes the engine and its front ends separate processes, and a front end that starts a request with a placement that does not fit would
take the engine down for everybody. So what is served stands in an environment variable, which all of them inherit.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from supernet.placement import Placement

VARIABLE = "PLACEMENT_SUITE_SERVED"
ARGUMENTS = ("placement", "preset")
"""The arguments of ours in a request: ``vllm_xargs`` over HTTP, ``SamplingParams.extra_args`` in Python."""


@dataclass(frozen=True)
class Served:
    """What a server holds. Raises ValueError in one line when a preset or the default does not fit the model."""

    layers: int
    letters: str  # the mixers of every layer
    fixed: str = ""  # the only placement there is, as in SupernetConfig
    presets: dict[str, str] = field(default_factory=dict)  # name -> placement
    default: str = ""  # letters or a preset's name; "": all layers take the first mixer, full attention where there is one

    def __post_init__(self) -> None:
        for name, placement in self.presets.items():
            try:
                self.parse(placement)
            except ValueError as error:
                raise ValueError(f"preset {name} does not fit this checkpoint: {error}") from None
        self.placement({})

    def parse(self, letters: object) -> Placement:
        placement = Placement(letters, self.layers, self.letters)
        if self.fixed and placement != self.fixed:
            raise ValueError(f"placement {placement!r}: this model was exported with {self.fixed} alone; serve the supernet for others")
        return placement

    def placement(self, arguments: Mapping[str, Any] | None) -> Placement:
        """The placement that a request's arguments ask for. Raises ValueError in one sentence."""
        asked = {name: (arguments or {})[name] for name in ARGUMENTS if (arguments or {}).get(name) is not None}
        if len(asked) > 1:
            raise ValueError(f"placement {asked['placement']!r} and preset {asked['preset']!r} were both given: give one of them")
        if "placement" in asked:
            return self.parse(asked["placement"])
        name = asked.get("preset", self.default or self.fixed or self.letters[0] * self.layers)
        if isinstance(name, str) and name in self.presets:
            return self.parse(self.presets[name])
        if "preset" in asked:
            raise ValueError(f"no preset {name!r}: choose from {', '.join(self.presets) or 'none, this server has no presets'}")
        try:
            return self.parse(name)
        except ValueError as error:
            raise ValueError(f"the default placement is neither a preset nor letters that fit: {error}") from None


def declare(served: Served) -> None:
    """Tell this process and those that it starts what is served."""
    os.environ[VARIABLE] = json.dumps(asdict(served))


def served() -> Served:
    return Served(**json.loads(os.environ[VARIABLE]))
