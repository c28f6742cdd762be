"""The best placement at every cost: found exactly, chosen with care, judged on items that did not choose it; and what to score next."""

from analysis.optimise.constraints import Constraints, meets
from analysis.optimise.exact import at_budget, best_at, frontier

__all__ = ["Constraints", "at_budget", "best_at", "frontier", "meets"]
