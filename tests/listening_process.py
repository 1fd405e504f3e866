"""A program of somebody else that listens on a port of the system's choice."""

import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_SECONDS = 60.0


@contextmanager
def listening(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Run Prometheus or Alertmanager until the end of the context.

    Yields:
        host:port, as the process itself says in its log.
    """
    log = folder / "log"
    with log.open("wb") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        try:
            end = time.monotonic() + _PATIENCE_SECONDS
            while not (found := re.search(r'msg="?Listening on"? address=(\S+)', log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            while not _is_ready(found[1]):
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=10):
            return True
    except urllib.error.URLError:
        return False
