"""How results are written: texts and tables beside their name and then renamed into place; Markdown."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.output.files import replacing


def bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table, numbers to three significant digits (whole numbers in full)."""

    def cell(value: object) -> str:
        if not isinstance(value, float | np.floating):
            return str(value)
        if np.isnan(value):
            return ""
        return f"{value:.0f}" if abs(value) >= 1 and float(value).is_integer() else f"{value:.3g}"

    rows = ([cell(value) for value in row] for row in table.itertuples(index=False, name=None))
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csv(table: pd.DataFrame, path: Path, digits: int = 9) -> None:
    """So many significant digits, so that rounding in the last place of a sum does not change the file."""
    write_text(table.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n"), path)


def write_text(text: str, path: Path) -> None:
    """UTF-8, beside its name and then renamed into place."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
