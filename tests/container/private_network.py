"""A network with nothing but a loopback, in which ports are free and nothing can be downloaded."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_ATTEMPTS = 100


@contextlib.contextmanager
def private_network() -> Iterator[tuple[str, ...]]:
    """Make a network namespace that lasts as long as the context, or as this process.

    Yields:
        What to put before a command to run it in there.

    Raises:
        RuntimeError: The system makes none.
    """
    holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
    try:
        namespace = Path(f"/proc/{holder.pid}/ns/net")
        for _ in range(_ATTEMPTS):
            if holder.poll() is not None:
                raise RuntimeError(f"`unshare --net` exited with {holder.returncode}.")
            if namespace.readlink() != Path("/proc/self/ns/net").readlink():
                break
            time.sleep(0.05)
        else:
            raise RuntimeError("`unshare --net` made no network namespace.")
        within = ("nsenter", f"--net={namespace}")
        subprocess.run([*within, "ip", "link", "set", "lo", "up"], check=True)
        yield within
    finally:
        holder.kill()
        holder.wait()
