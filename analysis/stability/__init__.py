"""Rankings over training time: when is the ranking of placements at the last step already there, and what does choosing earlier cost?"""

from analysis.stability.bands_over_time import COLUMNS, stability_table
from analysis.stability.endpoints import ENDPOINTS, Endpoints, load_endpoints
from analysis.stability.seeds import seeds_table
from analysis.stability.settling import time_to_stability

__all__ = ["COLUMNS", "ENDPOINTS", "Endpoints", "load_endpoints", "seeds_table", "stability_table", "time_to_stability"]
