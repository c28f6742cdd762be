import os
import subprocess

import pytest
from cluster import cluster, missing, wait_for


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The environment of a running one-node Slurm."""
    if lacking := missing():
        reason = f"no Slurm on this machine ({', '.join(lacking)}): apt-get install slurmctld slurmd slurm-client munge"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    if os.geteuid():
        reason = "Slurm's daemons are started as root here"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True)

        def empty():
            return not subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True, text=True).stdout.strip()

        wait_for(empty, "the cells that a failed test has left behind")
