"""How many compiled kernels oneDNN keeps."""

import os

_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_KERNELS = 4096


def keep_kernels() -> None:
    """Let oneDNN keep four times as many compiled kernels as by default, in this process.

    oneDNN compiles a kernel for each convolution, each of its shapes, the number of images included, and forward and
    backward. By default it keeps 1,024 of them, which a network of fifty convolutions in ten sizes of batch, or in the
    slices of ten classes, needs alone: from then on it compiles in every pass, which takes longer than to compute.
    A kernel takes up to 80 KiB of memory.

    Call it once, before the first convolution, when oneDNN reads it. Where the environment names a number, that stays.
    """
    os.environ.setdefault(_VARIABLE, str(_KERNELS))
