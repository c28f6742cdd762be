"""A real Slurm of one node on this machine, all its state in one folder: munged, slurmctld and slurmd, stopped by pid."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

LIMIT = 600  # seconds to wait for anything: a loaded machine is slow, a hung one fails
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")

CONF = """ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=200000,bf_interval=2,batch_sched_delay=0,requeue_delay=1
KillWait=60
MessageTimeout=100
SlurmdParameters=config_overrides
SlurmdTimeout=0
SlurmctldTimeout=300
BatchStartTimeout=300
UnkillableStepTimeout=600
MinJobAge=300
InactiveLimit=0
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=cells Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """The programs of Slurm that are not on this machine."""
    return [name for name in PROGRAMS if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")]


def wait_for(condition, what, seconds=LIMIT):
    """Poll until ``condition()`` is true and return what it gave."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)
    return found


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def cluster(folder, cpus=4):
    """Start the three daemons and yield the environment in which Slurm's commands find them; ``cpus`` tasks of one core run at once."""
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True, mode=0o700 if name == "munge" else 0o755)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    environment = os.environ | {"SLURM_CONF": str(conf), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    host = socket.gethostname().partition(".")[0]
    munge_files = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    started = []

    def start(name, *argv):
        with (folder / f"{name}.out").open("w") as out:
            process = subprocess.Popen(
                [name, *argv], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        started.append(process)
        return process

    def answers(*argv):
        return subprocess.run(argv, env=environment, capture_output=True, text=True)

    def up(wants):
        ended = [process.args[0] for process in started if process.poll() is not None]
        return bool(ended) or wants()

    try:
        start("munged", "-F", "--force", f"--socket={folder}/munge/socket", *munge_files)
        wait_for(lambda: up(lambda: answers("munge", "-S", f"{folder}/munge/socket", "-n").returncode == 0), "munge", 120)
        for _ in range(5):  # another process may take a port between its choice and its use
            conf.write_text(CONF.format(host=host, ports=free_ports(2), folder=folder, cpus=cpus))
            daemons = [start("slurmctld", "-D", "-f", str(conf)), start("slurmd", "-D", "-f", str(conf), "-N", host)]
            wait_for(lambda: up(lambda: answers("sinfo", "-h", "-o", "%T").stdout.strip() == "idle"), "Slurm's node", 120)
            if all(daemon.poll() is None for daemon in daemons):
                break
            stop(daemons)
            started[:] = started[:1]
        else:
            raise AssertionError("Slurm did not start:\n" + "\n".join(p.read_text()[-2000:] for p in sorted(Path(folder).glob("slurm*.*"))))
        yield environment
    finally:
        stop(reversed(started))


def stop(processes):
    for process in processes:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
