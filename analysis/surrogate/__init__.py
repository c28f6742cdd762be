"""Quality of any placement from a few hundred scored ones."""

from analysis.surrogate.expansion import ClusterExpansion, Landscape
from analysis.surrogate.fitting import fit

__all__ = ["ClusterExpansion", "Landscape", "fit"]
