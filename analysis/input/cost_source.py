"""Where costs come from, as it is typed: ``published``, ``measured:FILE[@CONTEXT]`` or ``roofline:DEVICE@CONTEXT``; else a file of costs.

The first three give a cost in FA equivalents to each mixer. ``measured`` takes what ``experiments.bench decode`` writes: its costs
(context, mixer, cost), or its table (placement, context, tokens_per_s, ratio), which is regressed here.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from analysis.cost import BENCH_COLUMNS, regress
from analysis.roofline import Shapes, coefficients, device
from supernet.placement import COST

FORMS = "published, measured:FILE[@CONTEXT], roofline:DEVICE@CONTEXT, or a file"


def by_mixer(text: str, run: Path | None) -> dict[str, float] | None:
    """Costs by mixer; None where ``text`` names a file of costs. ``run``: the directory or file of scores, beside which a roofline's shapes
    lie. Raises ValueError, one line that names the choices."""
    kind, colon, rest = text.partition(":")
    if text == "published":
        return dict(COST)
    if colon and kind == "measured":
        return measured(rest)
    if colon and kind == "roofline":
        name, context = split(text, rest)
        if context is None:
            raise ValueError(f"costs are {text!r}: say at which context, as in roofline:{name or 'h100'}@32768")
        on = device(name)
        return coefficients(shapes_of(run), on, context)
    return None


def check(text: str) -> None:
    """What can be said before there are scores. Raises ValueError as ``by_mixer``, and for a file that is not there."""
    kind, colon, rest = text.partition(":")
    if colon and kind == "roofline":
        name, context = split(text, rest)
        device(name)
        if context is None:
            raise ValueError(f"cost is {text!r}: say at which context, as in roofline:{name}@32768")
    elif by_mixer(text, None) is None and not Path(text).is_file():
        raise ValueError(f"cost is {text!r}: give {FORMS} with the columns mixer, cost")


def split(text: str, rest: str) -> tuple[str, int | None]:
    """``NAME@CONTEXT`` -> name and context, None without one."""
    name, at, context = rest.rpartition("@")
    if not at:
        return rest, None
    if not context.isdecimal() or int(context) < 1:
        raise ValueError(f"costs are {text!r}: {context!r} is no context, give a number of tokens as in @32768")
    return name, int(context)


def measured(rest: str) -> dict[str, float]:
    """Costs by mixer from a measured file, at its only context or at the one that is asked for."""
    name, context = (rest, None) if Path(rest).is_file() else split(f"measured:{rest}", rest)
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"no measured costs at {path}: python -m experiments.bench decode writes some")
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError):
        table = pd.DataFrame()
    speeds = "placement" in table and bool({"tokens_per_s", *BENCH_COLUMNS[1:]} & set(table))
    if not speeds and not {"mixer", "cost"} <= set(table):
        raise ValueError(f"{path} is no table of measured costs: it needs the columns context, mixer, cost as python -m experiments.bench "
                         "decode writes them, or placement, context, tokens_per_s")  # fmt: skip
    if "context" in table:
        there = sorted(set(table["context"]))
        if context is None and len(there) > 1:
            raise ValueError(f"{path} has several contexts: choose from {', '.join(f'measured:{path}@{n}' for n in there)}")
        if context is not None and context not in there:
            raise ValueError(f"{path} has no context {context}: choose from {', '.join(map(str, there))}")
        table = table[table["context"] == (there[0] if context is None else context)]
    elif context is not None:
        raise ValueError(f"{path} has no column context: leave @{context} out")
    if speeds:
        speed = table.get("ratio", table.get("tokens_per_s", table.get("tokens_per_second")))
        return regress(table.assign(tokens_per_second=speed), np.random.default_rng(0)).coefficients
    costs = pd.to_numeric(table["cost"], errors="coerce").to_numpy(float)
    bad = ~(np.isfinite(costs) & (costs > 0)) | table["mixer"].astype(str).duplicated().to_numpy()
    if bad.any():
        raise ValueError(f"{path} gives mixer {table['mixer'].iloc[bad.argmax()]} twice, or a cost that is not positive: correct it")
    return dict(zip(table["mixer"].astype(str), costs.tolist(), strict=True))


def shapes_of(run: Path | None) -> Shapes:
    """The model's shapes by the config.yaml of a run directory, which may also lie one folder above the scores."""
    folder = Path() if run is None else run if run.is_dir() else run.parent
    for path in (folder / "config.yaml", folder.resolve().parent / "config.yaml"):
        if path.is_file():
            try:
                found = yaml.safe_load(path.read_text())
                return Shapes.of({**(found.get("shapes") or {}), **{k: v for k, v in (found.get("model") or {}).items() if v is not None}})
            except (ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
                said = " ".join(str(error).split())
                raise ValueError(f"{path} does not give the model's shapes ({said}): give a table of costs instead") from None
    raise ValueError(f"a roofline needs the model's shapes, and {folder} has no config.yaml: name a run directory, or give a table of "
                     "costs with the columns mixer, cost")  # fmt: skip
