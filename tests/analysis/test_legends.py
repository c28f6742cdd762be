"""Shapes in docstrings are read by letters: a file says what each of its letters is, S, P and I apart, which analysis/table.py explains."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "analysis").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_letter_of_a_shape_is_explained(path):
    text = path.read_text(encoding="utf-8")
    described = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)]
    said = "\n".join(ast.get_docstring(node) or "" for node in described)
    letters = {letter for shape in re.findall(r"\[([A-Z](?:, [A-Z])*)\]", text) for letter in shape.split(", ")}
    assert [letter for letter in sorted(letters - set("SPI")) if not re.search(rf"(?<![\[\w]){letter} [a-z]\w+", said)] == []


def test_the_common_letters_are_explained_once_for_all():
    assert "Shapes, here and in all of analysis/: S steps, P placements, I items." in (ROOT / "analysis/table.py").read_text(
        encoding="utf-8"
    )
