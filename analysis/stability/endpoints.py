"""The endpoints of a stability claim, declared in conf/stability.yaml before any score is seen."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

ENDPOINTS = Path(__file__).parents[2] / "conf" / "stability.yaml"


@dataclass(frozen=True)
class Endpoints:
    """What will be reported, fixed before the data are seen."""

    bands: tuple[float, ...] = (0.14, 0.31, 0.48, 0.65, 0.82, 1.0)  # edges of the cost bands, as shares of the cost of all-FA
    delta_settled: float = 0.02  # nats/token: a band is settled once differences above this are final (resolution_hi at or below it)
    order_threshold: float = 0.95  # of order: what "final" means; 0.95 is 2.5% of the pairs the other way round
    regret_threshold: float = 0.1  # of regret_share: choosing is settled once less than this is lost (regret_share_hi at or below it)
    min_placements: int = 30  # a band with fewer gets no verdict
    min_items: int = 24  # scores with fewer items get no verdict
    neighbours: float = 0.05  # checkpoints this close to T, as a share of the training, are references of training noise, not judged
    threshold: float = 0.9  # of ratio: drawn in figures; no verdict hangs on it
    top_k: int = 10  # size of the top-k; at most half of a band
    level: float = 0.95  # of all intervals, pointwise and simultaneous
    decisive_z: float = 2.0  # standard errors apart at T that make a pair decisive
    resamples: int = 1000  # random halves of items for regret; draws for simultaneous bands
    halves: int = 8  # random halves of items averaged in cross-half statistics
    groups: int = 32  # groups of items left out in turn
    max_placements: int = 1536  # a larger set is thinned at random to this for the intervals (memory grows with its square)
    equal_cost: bool = True  # ratio, tau_cross and ceiling of a band compare at equal cost: the band's linear trend in cost is removed
    seed: int = 0


def load_endpoints(path: str | Path) -> Endpoints:
    """Endpoints from a YAML file. ValueError, one line, on a missing file, an unknown key, a wrong type or a value out of range."""
    if not Path(path).is_file():
        raise ValueError(f"no endpoints at {path}: give a YAML file such as conf/stability.yaml")
    known = ", ".join(Endpoints.__dataclass_fields__)
    try:
        schema = OmegaConf.structured(Endpoints)
        OmegaConf.set_readonly(schema, False)  # a frozen dataclass makes a read-only schema
        endpoints = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; the keys are {known}") from None
    except Exception as error:  # the YAML parser has its own errors
        raise ValueError(f"{path} is not a YAML mapping ({str(error).splitlines()[0]}); the keys are {known}") from None
    return _checked(Endpoints(**{**vars(endpoints), "bands": tuple(endpoints.bands)}), path)


def _checked(e: Endpoints, path: str | Path) -> Endpoints:
    numbers = {"bands": e.bands} | {name: (value,) for name, value in vars(e).items() if isinstance(value, float)}
    if wrong := next((name for name, values in numbers.items() if not np.isfinite(values).all()), None):
        raise ValueError(f"{path}: {wrong} must be finite, got {getattr(e, wrong)}")
    if len(e.bands) < 2 or any(a >= b for a, b in zip(e.bands, e.bands[1:], strict=False)) or e.bands[0] < 0:
        raise ValueError(
            f"{path}: bands {list(e.bands)} must be at least two increasing shares of the all-FA cost, such as [0.14, 0.5, 1.0]"
        )
    for name in ("threshold", "level", "order_threshold", "regret_threshold"):
        if not 0 < getattr(e, name) < 1:
            raise ValueError(f"{path}: {name} must lie between 0 and 1, got {getattr(e, name)}")
    if not 0 <= e.neighbours < 1:
        raise ValueError(f"{path}: neighbours must be a share of the training from 0 to below 1, got {e.neighbours}")
    least = {
        "delta_settled": 0,
        "min_items": 4,
        "top_k": 1,
        "decisive_z": 0,
        "resamples": 2,
        "halves": 1,
        "groups": 2,
        "min_placements": 4,
        "max_placements": 4,
        "seed": 0,
    }
    for name, low in least.items():
        if getattr(e, name) < low:
            raise ValueError(f"{path}: {name} must be at least {low}, got {getattr(e, name)}")
    return e
