"""Several real processes sweep one run directory at once: no row is lost, none doubled, whoever is killed."""

import pandas as pd
import pytest
from chain import call, elsewhere, run_folder

from analysis.table import load_scores
from experiments.faults.drill import end, start, wait_until
from experiments.faults.drill import score_rows as table


@pytest.mark.slow
def test_shards_write_at_once(small, tmp_path):
    small = [*small, f"supernet={tmp_path / 'net'}", f"items_file={tmp_path / 'items.parquet'}", "items=6", "workers=1"]
    call("random_supernet", small)
    folder = elsewhere(small, tmp_path / "shards")
    shards = [[*folder, "shards=3", f"shard={i}"] for i in range(3)]
    started = [start("sweep", options) for options in shards]
    first = tmp_path / "shards" / "tiny"
    wait_until(lambda: any(first.rglob("placements.parquet")), started[0])
    started[0].kill()
    for process in started:
        end(process)
    assert [process.returncode for process in started[1:]] == [0, 0]
    call("sweep", shards[0])  # whatever the killed one left
    call("sweep", small)
    pd.testing.assert_frame_equal(table(run_folder(folder)), table(run_folder(small)), atol=1e-4)
    assert load_scores(run_folder(folder)).quality.shape == (1, 16, 6)
