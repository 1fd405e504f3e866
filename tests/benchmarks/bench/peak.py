"""The memory of one route, in this process alone: `python -m benchmarks.bench.peak BUNDLE ROUTE BATCH CLASS`."""

import json
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.bench.routes import MASKED, ROUTES, answers, requests
from pathlens.bundle.store import load_bundle
from pathlens.explainer.kernels import keep_kernels
from pathlens.explainer.memory import keep_freed_memory

INTEGRATED = {"Captum integrated gradients, 15 steps": 15, "Captum integrated gradients, 50 steps": 50}
_RUNS = 3


def main() -> None:
    """Print what the process holds before and while it runs the route, as JSON in MiB."""
    folder, name, batch, label = sys.argv[1:]
    keep_freed_memory()
    keep_kernels()
    bundle = load_bundle(Path(folder))
    explainer = bundle.explainer() if name != MASKED.name else bundle.explainer(slice_bytes=0)
    images = torch.rand(int(batch), *explainer.classifier.input_shape, generator=torch.Generator().manual_seed(0))
    work: Callable[[], object]
    if (steps := INTEGRATED.get(name)) is not None:
        from captum.attr import IntegratedGradients

        integrated = IntegratedGradients(explainer.classifier)
        leaf = images.requires_grad_()

        def work() -> object:
            return integrated.attribute(leaf, target=int(label), n_steps=steps)

    else:
        (route,) = (route for route in ROUTES if route.name == name)
        asked = requests(route, list(images.numpy()), [int(label)] * int(batch))

        def work() -> object:
            return answers(explainer, asked)

    resident = _kibibytes("VmRSS")
    # The high-water mark begins anew: loading may have needed more than what follows.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(_RUNS):
        work()
    highest = _kibibytes("VmHWM")
    print(
        json.dumps(
            {
                "resident_mib": round(resident / 1024, 1),
                "highest_mib": round(highest / 1024, 1),
                "added_mib": round((highest - resident) / 1024, 1),
            }
        )
    )


def _kibibytes(field: str) -> float:
    with suppress(OSError):
        found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        if found:
            return float(found[1])
    # Where there is no /proc, the high-water mark has to do for both.
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main()
