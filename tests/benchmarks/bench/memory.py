"""The fourth part: the memory that each route needs at most, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.bench import peak
from benchmarks.bench.class_masks import make_bundle
from benchmarks.bench.in_process import Row, Tell
from benchmarks.bench.routes import BY_CONTRIBUTION, GENERATED_MAP, MASKED, PREDICT, SLICED
from benchmarks.bench.settings import BATCH, Settings
from benchmarks.bench.subjects import Subject
from pathlens.bundle.store import save_bundle

NAMES = (*(route.name for route in (PREDICT, SLICED, MASKED, GENERATED_MAP, BY_CONTRIBUTION)), *peak.INTEGRATED)
_SECONDS = 300.0


def measure(subject: Subject, settings: Settings, tell: Tell) -> Iterator[list[Row] | str]:
    """Measure routes and Captum's integrated gradients on a batch of eight.

    A process loads the bundle, makes the explainer, and only then computes: what it needs for that alone is told apart
    from what serving the model needs in any case.

    Args:
        subject: What is explained.
        settings: How; a quick run measures two routes alone.
        tell: Is told what is measured next.

    Yields:
        One row after the other; and, as text, what is wrong.
    """
    folder = settings.folder / "served" / subject.name / "memory"
    save_bundle(make_bundle(subject, SLICED.masks), folder)
    rows = subject.rows_of_different_classes(BATCH)
    label = int(subject.predicted[rows[0]])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "OMP_NUM_THREADS": str(settings.threads),
    }
    for name in NAMES[1:3] if settings.quick else NAMES:
        tell(f"memory of {name}")
        command = [sys.executable, "-m", "benchmarks.bench.peak", str(folder), name, str(BATCH), str(label)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode == -signal.SIGKILL:
            # That is what it needs, too; nothing is wrong with the result.
            tell(f"the system ended {name}: it needs more memory than there is")
            yield [{"name": name, "batch": BATCH}]
            continue
        if done.returncode:
            yield f"memory of {name}: {done.stderr.strip().splitlines()[-1:]}"
            continue
        yield [{"name": name, "batch": BATCH, **json.loads(done.stdout)}]
