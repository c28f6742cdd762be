"""docs/files.md says in one line what is in every source file, and names no file that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_source_file_has_its_line():
    listed = re.findall(r"^\| `([a-z]\w*/[\w/.]+\.py)` \| .+ \|$", (ROOT / "docs/files.md").read_text(), re.M)
    packages = ("supernet", "experiments", "analysis")
    files = {p.relative_to(ROOT).as_posix() for package in packages for p in (ROOT / package).rglob("*.py") if p.stat().st_size}
    assert sorted(listed) == sorted(files)


def test_figures_that_the_readme_shows_exist():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert shown and all((ROOT / path).exists() for path in shown)
