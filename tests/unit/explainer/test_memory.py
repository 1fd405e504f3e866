"""What the C library does with the memory of large tensors."""

import platform
import subprocess
import sys

import pytest

from pathlens.explainer.memory import keep_freed_memory

# Tensors of 64 MiB, each gone before the next one comes; the first few may still take what the heap grows by.
FAULTS = """
import resource, torch
from pathlens.explainer.memory import keep_freed_memory
if {keep}: assert keep_freed_memory()
for _ in range(16): torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8): torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    """Count the pages that a process of its own gets from the system for tensors of the same size."""
    program = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(program, check=True, capture_output=True, text=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_tensors_find_the_memory_of_those_before_them() -> None:
    assert faults(keep=True) < faults(keep=False) / 10


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
