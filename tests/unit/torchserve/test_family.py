import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pathlens.torchserve.family import ProcessFamily

PR_SET_CHILD_SUBREAPER = 36
PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def first_process() -> Iterator[None]:
    """Orphans become children of this process, as those of a container do of its first one."""
    library = ctypes.CDLL(None)
    assert library.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    library.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.usefixtures("first_process")
def test_orphans_of_a_killed_parent_leave_no_zombie(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        env=os.environ | {"TEMP": str(tmp_path)},
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        family = ProcessFamily(parent.pid, tmp_path)
        parent.kill()
        family.kill()
    assert not child.is_running()
