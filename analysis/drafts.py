"""Which placement to draft with: ``python -m analysis.drafts RUN [RUN ...] [--k 1 2 4] [--costs FILE]``.

Needs the acceptances that ``python -m experiments.sweep ... score=acceptance`` writes into RUN/acceptance. Writes RUN/tables/drafts.csv:
per k (drafts a round) and budget the draft with the best predicted speed-up over decoding with all-FA, and whether it loses. Its acceptance
is the surrogate's (exact optimum over all placements within the budget), beside it the best that was measured there.

With acceptance a per token, k drafts and relative draft cost c (Leviathan et al. 2023, arXiv 2211.17192, eq. 1 and theorem 3.8): a round
gives ``(1 - a^(k+1)) / (1 - a)`` tokens and takes the time of ``1 + k c`` tokens of all-FA. That counts a verification of k + 1 tokens as
one step, which holds where decoding is bound by memory, and acceptances as independent of each other.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.cost import coefficients_of, on_grid
from analysis.input.runs import load
from analysis.optimise.choice import default_budgets, surrogate
from analysis.optimise.exact import frontier
from analysis.output.command import arguments, ends
from analysis.output.write import write_csv
from analysis.table import Scores

KS = (1, 2, 3, 4, 6, 8)
"""Drafts of a round that are compared."""

MOST = 1000
"""Of them: a round is a sum over its drafts."""

FOLDER = "acceptance"
"""Of a run: where the sweep writes acceptances."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = arguments("drafts", __doc__.splitlines()[0], "where drafts.csv goes (default: RUN/tables)", runs="+", endpoints=False)
    parser.add_argument("--k", type=int, nargs="+", default=list(KS), help="drafts of a round")
    parser.add_argument("--budgets", type=float, nargs="+", help="largest cost of a draft, in FA-layer equivalents")
    options = parser.parse_args(argv)
    return max(ends(lambda path=path: write(path, options), str(path)) for path in options.runs)


def write(path: Path, options: argparse.Namespace) -> None:
    """The table of one run."""
    if min(options.k) < 1:
        raise ValueError(f"--k is {min(options.k)}: a round has at least one draft")
    if max(options.k) > MOST:
        raise ValueError(f"--k is {max(options.k)}: give at most {MOST} drafts a round")
    below = path / FOLDER
    if not (below / "scores").is_dir() and path.name != FOLDER:
        raise ValueError(f"{path} has no {FOLDER}/scores: run python -m experiments.sweep with the run's options and score=acceptance")
    for run in load(below if below.is_dir() else path, options.costs, options.out):
        quality = run.scores.quality
        if not run.scores.scored or quality.min() < -1e-6 or quality.max() > 1 + 1e-6:
            raise ValueError(f"{run.path} holds {quality.min():.3g} to {quality.max():.3g} {run.scores.unit}, and acceptances are scores "
                             "from 0 to 1: run python -m experiments.sweep with the run's options and score=acceptance")  # fmt: skip
        coefficients = coefficients_of(run.scores.placements, run.scores.cost)
        table = drafts(run.scores, coefficients, options.k, options.budgets)
        folder = options.out or (path if below.is_dir() else path.parent) / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(table, folder / "drafts.csv", digits=6)
        print(table.to_string(index=False, float_format="%.3g"))
        best = table.loc[table["speedup"].idxmax()]
        said = "every draft loses" if best["loses"] else f"best: {best['placement']}, {best['speedup']:.2f} times all-FA with k={best['k']}"
        print(f"{said} (predicted from costs, not measured); written to {folder / 'drafts.csv'}")


def drafts(scores: Scores, coefficients: Mapping[str, float], ks: Sequence[int], budgets: Sequence[float] | None = None) -> pd.DataFrame:
    """Per k and budget: k, budget, placement, cost, acceptance (predicted, within [0, 1]), tokens (expected of a round), speedup, loses,
    measured (the best draft that was scored within the budget), measured_acceptance. At the last checkpoint."""
    layers = len(scores.placements[0])
    full = layers * coefficients["F"]
    reachable = frontier(surrogate(scores), on_grid(coefficients))
    measured = pd.DataFrame({"placement": scores.placements, "acceptance": scores.quality[-1].mean(-1), "cost": scores.cost})
    rows = []
    for k in ks:
        for budget in budgets or default_budgets(layers, layers * min(coefficients.values()), full):
            here = reachable[(reachable["cost"] <= budget + 1e-9) & (reachable["rank"] == 1)]
            seen = measured[measured["cost"] <= budget + 1e-9]
            if here.empty:
                raise ValueError(f"no placement costs {budget:g} or less: the cheapest costs {reachable['cost'].min():g}")
            gain = speedup(here["predicted"].clip(0, 1).to_numpy(), here["cost"].to_numpy() / full, k)
            best = here.iloc[int(np.argmax(gain))]
            acceptance = float(np.clip(best["predicted"], 0, 1))
            top = None if seen.empty else seen.iloc[int(np.argmax(speedup(seen["acceptance"], seen["cost"] / full, k)))]
            rows.append({
                "k": k, "budget": budget, "placement": best["placement"], "cost": best["cost"], "acceptance": acceptance,
                "tokens": float(expected_tokens(acceptance, k)), "speedup": float(gain.max()), "loses": bool(gain.max() < 1),
                "measured": "" if top is None else top["placement"],
                "measured_acceptance": np.nan if top is None else top["acceptance"],
            })  # fmt: skip
    return pd.DataFrame(rows)


def expected_tokens(acceptance: np.ndarray | float, k: int) -> np.ndarray:
    """Tokens of a round of k drafts, the verifier's own included: 1 + a + ... + a^k."""
    return np.power.outer(np.asarray(acceptance, float), np.arange(k + 1)).sum(-1)


def speedup(acceptance: np.ndarray, relative_cost: np.ndarray, k: int) -> np.ndarray:
    """Tokens per time against all-FA alone; ``relative_cost``: of a draft's step, in steps of all-FA."""
    return expected_tokens(acceptance, k) / (1 + k * np.asarray(relative_cost, float))


if __name__ == "__main__":
    sys.exit(main())
