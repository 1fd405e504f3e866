"""The processes that belong to one TorchServe: the JVM, its workers, and whatever they started."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
_KILL_SECONDS = 10.0
_POLL_SECONDS = 0.02


class ProcessFamily:
    """Finds and kills the processes of a JVM that was started as the leader of its own session.

    Descent alone is not enough: a worker whose JVM was killed has another parent. It is known by its session, and by
    the temporary folder in its environment, because the system may have given the session's number away again.

    Args:
        leader: Process id of the JVM.
        temporary: The instance's temporary folder, as the JVM's TEMP names it.
    """

    def __init__(self, leader: int, temporary: Path) -> None:
        self._leader = leader
        self._temporary = str(temporary)
        self._known: set[psutil.Process] = set()

    def members(self) -> frozenset[psutil.Process]:
        """Find the processes that are alive now.

        Returns:
            The JVM, its workers, and all that they started; once found, a process is remembered until it ends.
        """
        for process in psutil.process_iter():
            if process not in self._known and self._belongs(process):
                self._known.add(process)
        for process in tuple(self._known):
            try:
                self._known.update(process.children(recursive=True))
            except _GONE:
                continue
        self._known = {process for process in self._known if _is_alive(process)}
        return frozenset(self._known)

    def listening_ports(self) -> frozenset[int]:
        """Find the TCP ports that the JVM listens on.

        Returns:
            The ports; none if the JVM has ended.
        """
        try:
            connections = psutil.Process(self._leader).net_connections("tcp")
        except _GONE:
            return frozenset()
        return frozenset(one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN)

    def kill(self) -> None:
        """Kill all members and wait until they are gone, for 10 seconds at most."""
        deadline = time.monotonic() + _KILL_SECONDS
        # A member may start another between being found and being killed, hence the repetition.
        while (members := self.members()) and time.monotonic() < deadline:
            for process in members:
                try:
                    process.kill()
                except _GONE:
                    continue
            time.sleep(_POLL_SECONDS)
        self._reap()

    def _reap(self) -> None:
        # The first process of a container is the parent of all that have lost theirs, such as the workers of a killed
        # JVM; without this they would stay as zombies. The JVM itself is waited for by whoever has started it.
        for child in psutil.Process().children():
            try:
                if child.pid != self._leader and os.getsid(child.pid) == self._leader:
                    os.waitpid(child.pid, os.WNOHANG)
            except (*_GONE, OSError):
                continue

    def _belongs(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == self._leader and process.environ().get("TEMP") == self._temporary
        except (*_GONE, OSError):
            return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except _GONE:
        return False


class Guard:
    """Removes folders, and kills a JVM and its workers, if our own process ends without having done so.

    A shell waits on a pipe whose other end is ours alone. When we go, in whatever way, the pipe closes.

    Args:
        folders: The folders to remove.
        leader: Process id of the JVM, the leader of its process group; None where there is only something to remove.
    """

    # The pause lets the killed processes end before their folder goes.
    _SCRIPT = 'read -r _ || { [ -z "$1" ] || kill -s KILL -- "-$1"; shift; sleep 0.5; rm -rf -- "$@"; }'

    def __init__(self, folders: Sequence[Path], leader: int | None = None) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", self._SCRIPT, "pathlens-guard", str(leader or ""), *map(str, folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except FileNotFoundError:
            # An image without a shell is a container's, and a container ends all its processes together.
            return

    def dismiss(self) -> None:
        """Let the guard go; it does nothing then."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.communicate(b"\n")
