"""How many processors there are for the workers, and how many threads each of them should compute with."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_FEW = 2
"""On so many processors the gateway and the JVM need what one thread leaves over."""


def threads_for(workers: int, processors: int) -> int:
    """Choose with how many threads each worker computes.

    Threads of one computation wait for each other many times in every pass: one that has to give way to another process
    holds all of them up.

    Args:
        workers: Worker processes of a model.
        processors: What they share with each other, and with the gateway and the JVM.

    Returns:
        At least 1.
    """
    return 1 if processors <= _FEW else max(1, processors // workers)


def available_processors(control_groups: Path = _CONTROL_GROUPS, own_group: Path = _OWN_GROUP) -> int:
    """Count the processors that this process may use: those it may run on, and no more than its container's quota.

    Args:
        control_groups: Where Linux tells the quotas of control groups.
        own_group: The file that names the control group of this process.

    Returns:
        At least 1; a part of a processor counts as a whole one.
    """
    # The affinity is not known on macOS.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(control_groups, own_group))]))


def _quotas(control_groups: Path, own_group: Path) -> Iterator[float]:
    """Yield the processors that each control group around this process may use, where there is a limit."""
    # Version 1 shows a container its own group in the place of the root.
    limit = _words(control_groups / "cpu" / "cpu.cfs_quota_us")
    yield from _quota([*limit, *_words(control_groups / "cpu" / "cpu.cfs_period_us")])
    # Version 2, whose line in the list of groups begins with 0. Every group around the own one may have a quota.
    own = next((word[3:] for word in _words(own_group) if word.startswith("0::/")), "/")
    for group in (PurePosixPath(own), *PurePosixPath(own).parents):
        yield from _quota(_words(control_groups / str(group).lstrip("/") / "cpu.max"))


def _quota(words: list[str]) -> Iterator[float]:
    """Yield the processors of a quota and its period in microseconds; none for "max" or -1, which mean no limit."""
    if len(words) > 1 and all(word.isdecimal() and int(word) > 0 for word in words):
        yield int(words[0]) / int(words[1])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []
