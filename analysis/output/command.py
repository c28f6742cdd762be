"""What the commands of analysis/ share: their arguments, and one line for an error."""

import sys
from collections.abc import Callable
from pathlib import Path

from analysis.input.formats import FORMATS
from analysis.output.one_line import Parser, nobody_reads
from analysis.stability.endpoints import ENDPOINTS


def arguments(name: str, what: str, out: str, runs: str = "*", endpoints: bool = True) -> Parser:
    """A parser with RUN ..., --costs, --out and, with ``endpoints``, --endpoints; ``out`` says what goes there, ``runs`` is argparse's
    nargs of RUN."""
    parser = Parser(prog=f"python -m analysis.{name}", description=what)
    default = "; default: every run directory under results/ that has scores" if runs == "*" else ""
    scored = f"run directory, or a file of scores ({', '.join(FORMATS)}){default}"
    parser.add_argument("runs", nargs=runs, type=Path, metavar="RUN", help=scored)
    if endpoints:
        parser.add_argument("--endpoints", type=Path, default=ENDPOINTS, help="the declared endpoints (default: conf/stability.yaml)")
    costs = ("published, measured:FILE[@CONTEXT], roofline:DEVICE@CONTEXT, or a table with the columns mixer, cost or placement, cost "
             "(default: what lies beside the scores, else published)")  # fmt: skip
    parser.add_argument("--costs", "--cost", dest="costs", metavar="COSTS", help=costs)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=out)
    return parser


def ends(action: Callable[[], int | None], where: str = "") -> int:
    """The exit code of an action; an error of the user's or of a file is one line on stderr, which names ``where``, and 1."""
    try:
        code = action() or 0
        sys.stdout.flush()  # what is still held would only be missed at the very end
        return code
    except BrokenPipeError:
        return nobody_reads()
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split())
        print(f"error: {said if where and where in said else f'{where}: {said}' if where else said}", file=sys.stderr)
        return 1
