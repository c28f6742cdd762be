"""A placement by name: what a user may type for one. Imports without torch."""

from pathlib import Path

import yaml

from supernet.config import SupernetConfig
from supernet.placement import Placement

ALL_FA = "all-FA"


def read_presets(folder: Path) -> dict[str, str]:
    """Placements by the names in ``presets.yaml`` of a run, of one of its ``checkpoints/step-*``, or of any folder; empty without one.

    Raises ValueError where the file holds something else.
    """
    for place in (folder, *folder.resolve().parents[:2]):
        if (path := place / "presets.yaml").is_file():
            try:
                presets = (yaml.safe_load(path.read_text()) or {}).get("presets") or {}
                return {str(name): str(preset["placement"]) for name, preset in presets.items()}
            except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
                raise ValueError(f"{path} does not hold presets: delete it and run make presets") from None
    return {}


def cheapest(presets: dict[str, str]) -> str:
    """The name of the preset with the fewest FA layers, then the fewest SWA ones."""
    return min(presets, key=lambda name: (presets[name].count("F"), presets[name].count("S")))


def resolve(name: str, presets: dict[str, str], config: SupernetConfig) -> Placement:
    """The placement of this model that ``name`` means: all-FA, a preset, or letters. ValueError names the choices."""
    if name == ALL_FA:
        return config.placement("F" * config.layers)
    if name in presets:
        return config.placement(presets[name])
    if name and set(name) <= set(config.mixers):
        return config.placement(name)
    choices = ", ".join([ALL_FA, *presets])
    raise ValueError(f"no preset {name!r}: choose from {choices}, or give {config.layers} letters of {config.mixers}")
