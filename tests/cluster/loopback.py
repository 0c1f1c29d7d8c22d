"""A SLURM of three nodes with two pretended GPUs each, on one machine and on loopback alone.

To be started inside `tests.cluster.namespace`, as root. Nothing outside its folder is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.cluster.namespace import missing_rights

NODES = ("n1", "n2", "n3")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munged")
ACCOUNTING = ("slurmdbd", "sacct", "mariadbd", "mariadb-install-db")
_WAIT_S = 40.0


@cache
def missing_programs(*, accounting: bool = False) -> str:
    """Which packages are missing; "" where none is."""
    wanted = (*PROGRAMS, *(ACCOUNTING if accounting else ()))
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    lacking = [name for name in wanted if shutil.which(name, path=path) is None]
    return f"SLURM is not installed here: no {', '.join(lacking)}" if lacking else ""


def missing_slurm() -> str:
    """Why no SLURM is started here; "" where one can be."""
    return missing_programs() or missing_rights()


def _configuration(folder: Path, *, signal_first: bool, accounting: bool) -> str:
    kept = {
        "ClusterName": "loopback",
        "SlurmctldHost": "localhost(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        # A requeued job waits for as long as credentials live; 120 s is what SLURM does by itself.
        "AuthInfo": f"socket={folder}/munge.socket,cred_expire=5",
        # Names resolve to nothing where there is only loopback; addresses need no resolving.
        "CommunicationParameters": "NoAddrCache,NoCtldInAddrAny,NoInAddrAny",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/spool-%n",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdLogFile": f"{folder}/slurmd-%n.log",
        "SlurmctldPort": 26817,
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=1,bf_interval=1,sched_min_interval=0",
        "SlurmdParameters": "config_overrides",  # more processors than the machine has
        "GresTypes": "gpu",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "JobRequeue": 1,
        "KillWait": 5,
        "SlurmdTimeout": 20,
        "SlurmctldTimeout": 20,
        "ReturnToService": 2,
        "JobAcctGatherType": "jobacct_gather/none",
    }
    if signal_first:
        kept["SlurmctldParameters"] = "preempt_send_user_signal"
    if accounting:
        kept |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": 26819,
            "AccountingStoragePass": f"{folder}/munge.socket",
        }
    else:
        kept["AccountingStorageType"] = "accounting_storage/none"
    lines = [f"{name}={value}" for name, value in kept.items()]
    for number, node in enumerate(NODES):
        where = f"NodeHostname=localhost NodeAddr=127.0.0.1 Port={26831 + number}"
        lines.append(f"NodeName={node} {where} CPUs=4 Gres=gpu:2 RealMemory=4000")
    common = f"Nodes={','.join(NODES)} MaxTime=60 State=UP"
    low = "Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=3"
    high = "Default=NO PriorityTier=10 PreemptMode=OFF"
    lines += [f"PartitionName=low {common} {low}", f"PartitionName=high {common} {high}"]
    return "\n".join(lines) + "\n"


@dataclass
class Loopback:
    """The cluster, in a folder.

    signal_first: whether what is preempted gets its signal before.
    accounting:   whether `sacct` works.
    """

    folder: Path
    signal_first: bool = False
    accounting: bool = False
    _database: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Bring everything up and wait for it."""
        os.environ["PATH"] += ":/usr/sbin:/usr/local/sbin"
        os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
        self.folder.chmod(0o755)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(
            _configuration(self.folder, signal_first=self.signal_first, accounting=self.accounting)
        )
        gpus = [self.folder / f"nvidia{number}" for number in range(2)]
        for gpu in gpus:
            gpu.touch()
        (self.folder / "gres.conf").write_text(
            f"NodeName=n[1-3] Name=gpu File={self.folder}/nvidia[0-1]\n"
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._run(
            *("munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket"),
            *(f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munge.log"),
            f"--seed-file={self.folder}/munge.seed",
        )
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self._wait("idle nodes", self._all_idle)

    def start_controller(self) -> None:
        """Start the controller, which goes on from its saved state."""
        self._run("slurmctld")

    def kill_controller(self) -> None:
        """SIGKILL it."""
        os.kill(int((self.folder / "slurmctld.pid").read_text()), signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._run("slurmd", "-N", node)

    def crash_node(self, node: str) -> None:
        """SIGKILL a node's daemon and everything that it runs, as if its power were cut."""
        daemon = int((self.folder / f"slurmd-{node}.pid").read_text())
        steps = [pid for pid in _processes() if f"spool-{node}" in _open_files(pid)]
        for pid in {daemon, *steps, *(child for step in steps for child in _descendants(step))}:
            _kill(pid)

    def _start_accounting(self) -> None:
        data, socket = self.folder / "database", self.folder / "database.socket"
        self._run(
            *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}"),
            *("--skip-test-db", "--auth-root-authentication-method=socket"),
        )
        self._database = subprocess.Popen(
            [
                *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
                *(f"--socket={socket}", "--skip-networking", "--innodb-flush-log-at-trx-commit=2"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait("database", socket.exists)
        kept = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge.socket",
            "DbdHost": "localhost",
            "DbdAddr": "127.0.0.1",
            "DbdPort": 26819,
            "SlurmUser": "root",
            "LogFile": f"{self.folder}/slurmdbd.log",
            "PidFile": f"{self.folder}/slurmdbd.pid",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "localhost",
            "StorageUser": "root",
            "StorageLoc": "slurm_acct_db",
        }
        conf = self.folder / "slurmdbd.conf"
        conf.write_text("".join(f"{name}={value}\n" for name, value in kept.items()))
        conf.chmod(0o600)
        subprocess.run(["slurmdbd"], env=os.environ | {"MYSQL_UNIX_PORT": str(socket)}, check=True)
        self._wait("accounting", self._accounting_answers)
        self._run("sacctmgr", "-i", "add", "cluster", "loopback")
        self._run("sacctmgr", "-i", "add", "account", "lab", "cluster=loopback")
        self._run("sacctmgr", "-i", "add", "user", "root", "account=lab")

    def _run(self, *words: str) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _all_idle(self) -> bool:
        words = ["sinfo", "-hN", "-p", "low", "-o", "%t"]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        return said.split() == ["idle"] * len(NODES)

    def _accounting_answers(self) -> bool:
        words = ["sacctmgr", "-n", "show", "cluster"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def _wait(self, what: str, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not there():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} after {_WAIT_S:.0f} s")
            time.sleep(0.1)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _open_files(pid: int) -> str:
    try:
        return " ".join(os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return ""


def _descendants(pid: int) -> list[int]:
    parents = {}
    for other in _processes():
        try:
            parents[other] = int(
                Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:
            continue
    found, at = [], [pid]
    while at:
        children = [child for child, parent in parents.items() if parent in at]
        found += children
        at = children
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
