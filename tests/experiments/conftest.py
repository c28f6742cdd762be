import pytest

from experiments.faults.drill import SMALL


@pytest.fixture
def small(tmp_path):
    """Overrides that send every file of a small run into a temporary folder."""
    return [*SMALL, f"results={tmp_path / 'results'}", f"cache={tmp_path / 'cache'}"]
