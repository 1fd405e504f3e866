"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only once everything is written.

    Args:
        path: Name of the file, which is replaced; its folder is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            # Or the name could survive a power failure without the contents.
            os.fsync(file.fileno())
        Path(scratch).chmod(0o644)
        Path(scratch).rename(path)
    finally:
        Path(scratch).unlink(missing_ok=True)
