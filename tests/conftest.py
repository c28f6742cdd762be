"""For all tests."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def kernels_as_they_were() -> Iterator[None]:
    """The kernels that a command chose inside a test are not those of the next test."""
    yield
    if "supernet.ops.kernels" in sys.modules:
        sys.modules["supernet.ops.kernels"].use("torch")
