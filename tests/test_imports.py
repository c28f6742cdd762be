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


@pytest.mark.parametrize("package", OURS)
def test_nobody_imports_serving(package):
    """It needs vLLM, which has an environment of its own."""
    for path in files(package):
        if "serving" not in path.parts:
            assert not [name for name in imported(path) if name.startswith("supernet.serving") or name.split(".")[0] == "vllm"], path


@pytest.mark.parametrize("path", files("analysis"), ids=lambda p: str(p.relative_to(ROOT)))
def test_analysis_reads_tables_only(path):
    assert not uses(path, "experiments", *TORCH)
    allowed = ("supernet.placement", "supernet.placement.")
    assert [n for n in uses(path, "supernet") if n != allowed[0] and not n.startswith(allowed[1])] == []


@pytest.mark.parametrize(("package", "known"), [("experiments", "experiments.sweep"), ("analysis", "analysis.report")])
def test_commands_do_not_import_each_other(package, known):
    """A package's own __main__ may: it is the command of what lies beside it."""
    runs = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files(package)}
    commands = {path: name for path, name in runs.items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8")}
    assert known in commands.values(), f'this test looks for __name__ == "__main__" in files of {package}/'
    for path, name in commands.items():
        beside = {other for other in commands.values() if path.stem == "__main__" and other.rpartition(".")[0] == name.rpartition(".")[0]}
        assert not (set(commands.values()) - {name} - beside) & set(imported(path)), path


def test_nothing_in_analysis_imports_a_command():
    commands = {f"analysis.{p.stem}" for p in (ROOT / "analysis").glob("*.py") if '__name__ == "__main__"' in p.read_text(encoding="utf-8")}
    for path in files("analysis"):
        assert not (commands - {f"analysis.{path.stem}"}) & set(imported(path)), path


def test_the_top_of_experiments_holds_commands_alone():
    others = {p.name for p in (ROOT / "experiments").glob("*.py") if '__name__ == "__main__"' not in p.read_text(encoding="utf-8")}
    assert others <= {"__init__.py", "config.py", "run.py", "machine.py"}


def test_the_top_of_analysis_holds_commands_and_what_all_of_them_read():
    others = {p.name for p in (ROOT / "analysis").glob("*.py") if '__name__ == "__main__"' not in p.read_text(encoding="utf-8")}
    assert others <= {"__init__.py", "table.py", "bands.py", "cost.py", "roofline.py"}


@pytest.mark.parametrize("package", ["experiments", "analysis"])
def test_no_two_modules_share_a_name(package):
    names = [p.stem for p in files(package) if not p.stem.startswith("__")]
    assert sorted(set(names)) == sorted(names)


def takes_all_options(function):
    """Whether a function has a parameter for the whole Config: by its annotation, or by its name where there is none."""
    arguments = function.args
    for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        words = {node.id for node in ast.walk(each.annotation) if isinstance(node, ast.Name)} if each.annotation else set()
        if "Config" in words - {"Callable"} and "Callable" not in words or each.annotation is None and each.arg == "config":
            return True
    return False


def test_few_functions_take_all_options():
    """Commands and what makes a Run do; the others say what they need. 108 took them before there was a Run."""
    nodes = [(path, node) for path in files("experiments") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    takers = [f"{path.stem}.{n.name}" for path, n in nodes if isinstance(n, ast.FunctionDef) and takes_all_options(n)]
    assert "sweep.sweep" in takers and len(takers) <= 15, takers


@pytest.mark.parametrize("module", ["supernet.placement", "analysis.statistics.ranks", "analysis.table", "experiments.chain"])
def test_loads_without_torch(module):
    code = f"import sys, {module}; assert not set(sys.modules) & {{{', '.join(map(repr, TORCH))}}}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
