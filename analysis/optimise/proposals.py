"""What the optimiser proposed and had scored: it lives beside a run's tables, which stay a sample that no search has bent towards the good.

``RUN/proposed/placements.parquet`` and ``RUN/proposed/step-*/*.parquet``, in the schemas of the run's own tables, last checkpoint only.
The surrogate of that checkpoint learns from both; rankings, stability and every other statistic read the run's tables alone.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.cost import coefficients_of, placement_costs
from analysis.optimise.fresh_items import load_beside
from analysis.table import Scores, load_placements

TABLE = "proposed"


def with_proposed(run: Path, scores: Scores) -> Scores:
    """The last checkpoint alone, with the run's own placements first and then the proposals that are not among them.

    Raises ValueError where proposals lack items of the tables, or are unreadable, of another run or not finite.
    """
    last = scores.part(steps=slice(-1, None))
    quality = load_beside(run, TABLE, scores, known=True)
    quality = quality[~quality.index.isin(scores.placements)]
    if quality.empty:
        return last
    again = "run the sweep with placements=proposed again, it continues what is missing"
    if lacking := [item for item in scores.items if item not in quality.columns]:
        raise ValueError(f"{run / TABLE} lacks {len(lacking)} items of the tables, the first is {lacking[0]}: {again}")
    listed = load_placements(run / TABLE).set_index("placement")["cost"].reindex(quality.index)
    if listed.isna().any():
        raise ValueError(f"{run / TABLE / 'placements.parquet'} lacks the scored placement {listed.index[listed.isna()][0]}: {again}")
    try:  # what prices the tables prices the proposals, whatever they were chosen by
        cost = placement_costs(list(quality.index), coefficients_of(scores.placements, scores.cost))
    except ValueError:  # costs that are no sum over mixers
        cost = listed.to_numpy()
    return replace(
        last,
        placements=[*scores.placements, *quality.index],
        cost=np.append(scores.cost, cost),
        quality=np.concatenate([last.quality, quality[scores.items].to_numpy()[None]], axis=1),
    )
