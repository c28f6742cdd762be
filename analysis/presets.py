"""Presets of a run: named placements per budget, how sure they are, and how they would have differed earlier in training.

``python -m analysis.presets [RUN ...]`` (default: every run under results/ with scores) writes into each run directory presets.yaml,
tables/preset_drift.csv, preset_layers.csv, surrogate.csv, surrogate_coefficients.csv and figures/presets, preset_drift,
surrogate_coefficients; where winners were scored on fresh items also tables/found.csv and figures/found. Quality is the mean log-likelihood
per token (objective ``loglik``); retention is exp(quality - quality of all-FA), the ratio of geometric mean token probabilities.

``python -m analysis.presets RUN --budget 26 --at-least F=4 --fix 0=F --forbid S --no-singletons`` answers for these budgets and
constraints (any of them) in the terminal, and writes nothing. ``--objective retrieval`` chooses by accuracy on the questions that
``python -m experiments.evaluate`` has asked, and writes all of the above into RUN/evaluation/retrieval.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.cost import coefficients_of
from analysis.input.evaluations import named_presets
from analysis.input.formats import stem_of
from analysis.input.runs import Run, find_runs, load
from analysis.optimise.choice import OBJECTIVE, budgets_of, choose, surrogate
from analysis.optimise.constraints import Constraints
from analysis.optimise.proposals import with_proposed
from analysis.output.command import arguments, ends
from analysis.output.presets_report import write_presets
from analysis.stability import load_endpoints


def main(argv: Sequence[str] | None = None) -> int:
    """The command: every run, even after one that fails; returns the exit code."""
    out = "one RUN: where all of it goes (default: beside its scores); several: a folder there for each"
    parser = arguments("presets", __doc__.splitlines()[0], out)
    parser.add_argument("--budgets", type=float, nargs="+", help="in the unit of costs; default: the published ones at this depth")
    parser.add_argument("--seed", type=int, default=0, help="of posterior draws and held-out splits")
    asked = parser.add_argument_group("to ask without writing anything")
    asked.add_argument("--budget", type=float, nargs="+", help="the best placements within these budgets; default: as --budgets")
    asked.add_argument("--at-least", nargs="+", default=[], metavar="MIXER=N", help="so many layers of a mixer or more: F=4")
    asked.add_argument("--fix", nargs="+", default=[], metavar="LAYER=MIXER", help="the mixer of a layer, the first is 0: 0=F")
    asked.add_argument("--forbid", default="", metavar="MIXERS", help="mixers that no layer may take: KG")
    asked.add_argument("--no-singletons", action="store_true", help="a mixer that is used is used in two layers or more")
    asked.add_argument("--no-isolated", action="store_true", help="every layer has a neighbour with the same mixer")
    parser.add_argument("--objective", default=OBJECTIVE, metavar="TASK",
                        help="loglik (default), or accuracy on a task of RUN/evaluation: retrieval, synthetic, ...")  # fmt: skip
    options = parser.parse_args(argv)
    return ends(lambda: every_run(options))


def every_run(options: argparse.Namespace) -> int:
    """1 where a run failed."""
    constraints = parse_constraints(options.at_least, options.fix, options.forbid, options.no_singletons, options.no_isolated)
    level = load_endpoints(options.endpoints).level
    if options.seed < 0:
        raise ValueError(f"--seed is {options.seed}: give 0 or more")
    asked = options.budget or constraints != Constraints()
    paths = options.runs or find_runs(Path("results"))

    def one(path: Path) -> None:
        if options.objective != OBJECTIVE:
            path = of_task(path, options.objective)
        out = options.out if options.out is None or len(paths) == 1 else options.out / (path.name if path.is_dir() else stem_of(path))
        for run in load(path, options.costs, out):
            if asked:
                print(ask(run, options.budget or options.budgets, constraints, level).to_string(index=False, float_format="%.4g"))
            else:
                document = write_presets(run, options.budgets, options.seed, level, options.objective)
                print(summary(run.folder if run.folder != path.parent else path, document))
                if options.objective != OBJECTIVE:
                    print(beside_likelihood(path.parents[1], document))

    return max([ends(lambda path=path: one(path), str(path)) for path in paths])


def of_task(path: Path, task: str) -> Path:
    """The folder of a run's evaluation. ValueError names the tasks that there are."""
    folder = path / "evaluation" / task
    if not (folder / "scores").is_dir():
        there = ", ".join(sorted(p.parent.name for p in path.glob("evaluation/*/scores"))) or "none yet"
        raise ValueError(
            f"--objective {task}: {path} has no such evaluation ({there}): run python -m experiments.evaluate {path} tasks=..."
        )
    return folder


def beside_likelihood(run: Path, document: dict) -> str:
    """At which budgets the presets by likelihood are others."""
    known = {entry.get("budget"): entry["placement"] for entry in named_presets(run).values()}
    shared = [entry for entry in document["presets"].values() if entry["budget"] in known]
    other = [f"{entry['budget']:g}" for entry in shared if known[entry["budget"]] != entry["placement"]]
    if not shared:
        return f"  no presets by likelihood at these budgets in {run / 'presets.yaml'}"
    return f"  by likelihood another placement at {len(other)} of {len(shared)} budgets{': ' * bool(other)}{', '.join(other)}"


def parse_constraints(at_least: Sequence[str], fix: Sequence[str], forbid: str, no_singletons: bool, no_isolated: bool) -> Constraints:
    """From what was typed. Raises ValueError for what is not MIXER=N or LAYER=MIXER, or says two things of one mixer or layer."""

    def pairs(typed: Sequence[str], option: str, form: str) -> dict[str, str]:
        said: dict[str, str] = {}
        for text in typed:
            key, equals, value = text.partition("=")
            number, letter = (key, value) if option == "--fix" else (value, key)
            if not equals or not number.isdecimal() or len(letter) != 1:
                raise ValueError(f"{option} is {text!r}: give {form}")
            if said.setdefault(key, value) != value:
                raise ValueError(f"{option} says {key}={said[key]} and {text}: give one of them")
        return said

    return Constraints(
        at_least={mixer: int(count) for mixer, count in pairs(at_least, "--at-least", "MIXER=N, as in F=4").items()},
        fixed={int(layer): mixer for layer, mixer in pairs(fix, "--fix", "LAYER=MIXER, as in 0=F (the first layer is 0)").items()},
        forbidden=forbid, no_singletons=no_singletons, no_isolated=no_isolated,
    )  # fmt: skip


def ask(run: Run, budgets: Sequence[float] | None, constraints: Constraints, level: float) -> pd.DataFrame:
    """What ``choose`` says under constraints: budget, placement, cost, predicted, lo, hi (nats per token), scored (yes or no)."""
    last = with_proposed(run.beside, run.scores)
    expansion, coefficients = surrogate(last), coefficients_of(run.scores.placements, run.scores.cost)
    table = choose(expansion, budgets or budgets_of(expansion, coefficients), coefficients, constraints=constraints, level=level)
    half = expansion.quantile(level) * table["sd"]
    table = table[["budget", "placement", "cost", "predicted"]].assign(lo=table["predicted"] - half, hi=table["predicted"] + half)
    return table.assign(scored=np.where(table["placement"].isin(last.placements), "yes", "no"))


def kept_in_words(kept: dict[str, float | None]) -> str:
    if kept["value"] is None:
        return "retention unknown, all-FA has none"
    return f"retention {kept['value']:.3f} [{kept['lo']:.3f}, {kept['hi']:.3f}]"


def summary(run: Path, document: dict) -> str:
    """The presets for the terminal."""
    source = document["provenance"]
    lines = [f"{run}: {source['placements']} placements and {source['proposed']} proposals, step {source['step']}"]
    stale = 0
    for name, entry in document["presets"].items():
        kept, measured = entry["retention"], entry["measured"]
        fresh = measured is not None and measured["fresh_items"]
        how = "predicted" if measured is None else f"{measured['items']} {'fresh items' if fresh else 'items that chose it'}"
        stale += not fresh
        lines.append(f"  {name:<12} {entry['placement']}  cost {entry['cost']:g}, {kept_in_words(kept)} ({how})")  # fmt: skip
    if stale:
        lines.append(f"  {stale} of these not judged on fresh items, which favours them: run python -m experiments.sweep with the run's "
                     "options and placements=winners")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
