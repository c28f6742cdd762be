import itertools
import re
import zlib
from pathlib import Path

import numpy as np

from experiments.runs.streams import stream, torch_stream

ROOT = Path(__file__).resolve().parents[3]


def test_no_two_streams_begin_alike():
    """Trailing zeros, which SeedSequence drops from entropy, and numbers in place of names included."""
    numbers = [(), *itertools.product((0, 1, 7), repeat=1), *itertools.product((0, 1, 7), repeat=2)]
    given = [(seed, name, *its) for seed in (0, 1, 2**40) for name in ("draw", "order", "items") for its in numbers]
    first = {tuple(stream(*its).integers(2**63, size=2)) for its in given}
    assert len(first) == len(given)
    assert np.array_equal(stream(3, "draw", 5).random(4), stream(3, "draw", 5).random(4))
    assert torch_stream(1, "traces").initial_seed() != torch_stream(1, "items").initial_seed()


def test_every_generator_of_experiments_is_a_named_stream():
    """Benchmarks and the fault table draw made-up numbers for themselves and are left out."""
    names = set()
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        if {"bench", "faults"} & set(path.parts) or path.name == "streams.py":
            continue
        text = path.read_text()
        assert not re.search(r"default_rng\(\[", text), f"{path}: name the stream"
        names |= set(re.findall(r'stream\([^,()]+(?:\.[a-z_]+)?, "([^"]+)"', text))
    assert {"draw", "order", "placements"} <= names
    assert len({zlib.crc32(name.encode()) for name in names}) == len(names)
