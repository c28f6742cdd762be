"""The import rules: experiments -> supernet, analysis; analysis -> supernet.placement; supernet knows nobody."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("supernet", "experiments", "analysis")
TORCH = ("torch", "lightning", "transformers", "safetensors")


def imported(path):
    """The absolute names of all modules that a file imports, at the top or inside functions; ``from a import b`` gives a and a.b."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else node.module
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def files(package):
    return [p for p in sorted((ROOT / package).rglob("*.py")) if "__pycache__" not in p.parts]


def uses(path, *packages):
    return sorted(name for name in imported(path) if name.split(".")[0] in packages)


@pytest.mark.parametrize("path", files("supernet"), ids=lambda p: str(p.relative_to(ROOT)))
def test_supernet_knows_nobody(path):
    assert not uses(path, "experiments", "analysis")


@pytest.mark.parametrize("path", files("analysis"), ids=lambda p: str(p.relative_to(ROOT)))
def test_analysis_reads_tables_only(path):
    assert not uses(path, "experiments", *TORCH)
    allowed = ("supernet.placement", "supernet.placement.")
    assert [n for n in uses(path, "supernet") if n != allowed[0] and not n.startswith(allowed[1])] == []


def test_entry_points_do_not_import_each_other():
    entries = {p.stem for p in files("experiments") if '__name__ == "__main__"' in p.read_text(encoding="utf-8")} - {"__main__"}
    assert entries, 'no entry point was found: this test looks for __name__ == "__main__" in files of experiments/'
    for path in files("experiments"):
        others = {f"experiments.{entry}" for entry in entries - {path.stem}}
        if path.stem in entries:
            assert not others & set(imported(path)), path


@pytest.mark.parametrize("module", ["supernet.placement", "analysis.ranks", "analysis.table"])
def test_loads_without_torch(module):
    code = f"import sys, {module}; assert not set(sys.modules) & {{{', '.join(map(repr, TORCH))}}}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
