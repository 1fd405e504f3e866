"""How the C library treats the memory of large tensors."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
_GIBIBYTE = 1 << 30
# What older versions of glibc allow at most.
_LARGEST_EVERYWHERE = 32 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of tensors that are gone for those that come next, in this process.

    By default it takes every large tensor from the system and returns it when it is gone: the system clears each page
    anew, which takes as long as a third of the passes of MobileNetV2 on eight images. A process that runs the same
    passes again and again needs the same memory again; it stays as large as the largest of them made it. Only tensors
    of a gibibyte and more still come and go alone.

    Call it once, before the first pass. Other C libraries, such as musl or that of macOS, are left alone.

    Returns:
        Whether it did anything.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # First the size from which tensors are mapped one by one: where none can be set, setting the other would fix it at
    # a size so small that every tensor is.
    is_set = mallopt(_MMAP_THRESHOLD, _GIBIBYTE) or mallopt(_MMAP_THRESHOLD, _LARGEST_EVERYWHERE)
    return bool(is_set) and bool(mallopt(_TRIM_THRESHOLD, 2 * _GIBIBYTE - 1))
