"""One progress bar for all long work: lively on a terminal, a line every ten seconds in a log."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(iterable: Iterable | None, name: str, total: int | None = None, initial: int = 0) -> tqdm:
    """A tqdm bar on stderr."""
    return tqdm(iterable, desc=name, total=total, initial=initial, mininterval=0.2 if sys.stderr.isatty() else 10.0)


def end_bars() -> None:
    """End the lines of the bars that an error or a signal has left open, so that what is said next has a line of its own."""
    for bar in list(getattr(tqdm, "_instances", [])):
        bar.close()
