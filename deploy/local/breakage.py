"""Ways to break the service, to see what Prometheus makes of it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from io import BytesIO

import numpy as np
import psutil
from PIL import Image

from local.load import Manner
from local.service import Service

_KILL_SECONDS = 10.0


class Breakage(Enum):
    """What goes wrong; the value is the word of the command line."""

    WORKER = "worker"
    """The worker is killed again and again."""
    OVERLOAD = "overload"
    """More is asked than can be answered in time."""
    BAD_IMAGES = "bad-images"
    """Most of what is sent is no image: the callers' fault, of which no alert tells."""
    DRIFT = "drift"
    """The images are not those that the bundle was fitted on."""

    @property
    def manner(self) -> Manner:
        """How the callers behave."""
        match self:
            case Breakage.OVERLOAD:
                return Manner(callers=48, pause_seconds=0.0, timeout_seconds=1.0, costly=True)
            case Breakage.BAD_IMAGES:
                return Manner(bad_share=0.8)
            case _:
                return Manner()

    def spoil(self, image: bytes) -> bytes:
        """Make of a picture what is sent.

        Args:
            image: An encoded picture.

        Returns:
            The same, or under `DRIFT` its negative under noise.
        """
        if self is not Breakage.DRIFT:
            return image
        with Image.open(BytesIO(image)) as opened:
            pixels = 255 - np.asarray(opened, dtype=np.int16)
        noise = np.random.default_rng(len(image)).integers(-96, 97, pixels.shape)
        buffer = BytesIO()
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    @contextmanager
    def befalling(self, service: Service) -> Iterator[None]:
        """Break what has to be broken in the service itself, until the end of the context.

        Args:
            service: The service.
        """
        if self is not Breakage.WORKER:
            yield
            return
        done = threading.Event()

        def kill() -> None:
            while not done.wait(_KILL_SECONDS):
                for worker in service.workers():
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            done.set()
            killer.join()
