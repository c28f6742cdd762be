"""docs/statistics.md explains every column of every table that the commands write, and no other."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import presets, report

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
COMMITTED = {  # what takes a model, many seeds or an exhaustive run to make
    "strategies": "comparison/strategies/tiny/tables/strategies.csv",
    "strategies/stability": "comparison/strategies/tiny/tables/stability.csv",
    "validation/subsamples": "validation/subsamples.csv",
    "found": "135m/local-s1-65092dec/tables/found.csv",
    "search": "tiny/local-s1-e5ee5f8b/tables/search.csv",
    "search_budgets": "tiny/local-s1-e5ee5f8b/tables/search_budgets.csv",
}


def glossary() -> dict[str, set[str]]:
    """The columns that each section explains; "" has those that mean the same everywhere."""
    parts = re.split(r"^### (.+)$", (ROOT / "docs" / "statistics.md").read_text().partition("## Columns")[2], flags=re.M)
    sections = dict(zip(["", *parts[1::2]], [parts[0], *parts[2::2]], strict=True))
    rows = {name: re.findall(r"^\| (`.+?) \| .+ \|$", text, re.M) for name, text in sections.items()}
    return {name: {column for row in cells for column in re.findall(r"`([^`]+)`", row)} for name, cells in rows.items()}


@pytest.fixture(scope="module")
def tables(simulate, write_run, tmp_path_factory) -> dict[str, list[str]]:
    """The columns of every table, by name."""
    folder = tmp_path_factory.mktemp("glossary")
    quick = folder / "quick.yaml"
    quick.write_text("resamples: 10\nhalves: 1\ngroups: 4\nmin_items: 12\nbands: [0.14, 0.5, 1.0]\n")
    runs = [
        write_run(
            simulate(np.random.default_rng(s), n_placements=200, n_items=12, steps=(0, 10, 100), run=f"sim-{s}", seed=s), folder / "results"
        )
        for s in range(2)
    ]
    alone = write_run(simulate(np.random.default_rng(2), n_items=8, steps=(10,), run="alone"), folder / "results")
    common = ["--endpoints", str(quick)]
    assert report.main([*map(str, runs), *common, "--out", str(folder / "comparison")]) == 0
    assert report.main([str(alone), *common]) == presets.main([str(runs[0]), *common]) == 0
    found = {path.stem: path for path in folder.glob("**/tables/*.csv")} | {name: RESULTS / path for name, path in COMMITTED.items()}
    return {name: list(pd.read_csv(path, nrows=1)) for name, path in found.items()}


def test_every_table_has_its_section(tables):
    assert set(glossary()) - {""} == set(tables)


def test_every_column_is_explained_and_no_other(tables):
    said = glossary()
    everywhere = said.pop("")
    for name, columns in tables.items():
        own = said[name] | everywhere | (said["stability"] if name in ("comparison", "reruns") else set())
        unexplained = [column for column in columns if column not in own and re.sub(r"_(lo|hi|start)$", "", column) not in own]
        assert not unexplained, f"docs/statistics.md does not explain {unexplained} of {name}"
        assert said[name] <= set(columns), f"docs/statistics.md explains {said[name] - set(columns)}, which {name} does not have"
    used = {column for columns in tables.values() for column in columns}
    assert everywhere <= used
