"""What a benchmark ran on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

_ROOT = Path(__file__).parents[3]
_PACKAGES = ("torch", "numpy", "onnxruntime", "captum", "torchserve", "grpcio")


def describe_machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Tell the machine, the versions and the commit that a benchmark ran on.

    Args:
        device: Where passes ran.
        threads: Of every pass on the CPU.

    Returns:
        Values for JSON; the load average is that of the last minute, before the benchmark began.
    """
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "logical_processors": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain")),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
