"""How many compiled kernels oneDNN keeps."""

import subprocess
import sys

import pytest
import torch

# More shapes than oneDNN keeps by default, each of them twice.
PROGRAM = """
import torch
from pathlens.explainer.kernels import keep_kernels
if {keep}: keep_kernels()
for _ in range(2):
    for size in range(1, 41):
        for channels in range(1, 31):
            torch.ops.aten.mkldnn_convolution(
                torch.ones(1, channels, 3, size), torch.ones(1, channels, 1, 1), None, (0, 0), (1, 1), (1, 1), 1
            )
"""


def compiled(keep: bool, **environment: str) -> int:
    """Count the kernels that a process of its own compiles for 1,200 shapes, as oneDNN tells."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)],
        env={
            "ONEDNN_VERBOSE": "profile_create",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(sys.path),
            **environment,
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return result.stdout.count("create:cache_miss,cpu,convolution")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")  # type: ignore[no-untyped-call]
class TestKernels:
    def test_are_compiled_again_by_default_when_there_are_many(self) -> None:
        assert compiled(keep=False) > 1200

    def test_are_compiled_once_when_they_are_kept(self) -> None:
        assert compiled(keep=True) == 1200

    def test_are_as_many_as_the_environment_says(self) -> None:
        assert compiled(keep=True, ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024") > 1200
