"""An event loop beside threads."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

# How long a gateway may take to put away what it has begun.
_CANCEL_SECONDS = 10.0


class LoopThread:
    """An event loop in a thread of its own, from the construction to `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end; whoever interrupts the waiting cancels it and waits for its end, too.

        Args:
            coroutine: What to run.

        Raises:
            RuntimeError: The loop is closed.
        """
        tasks: list[asyncio.Task[None]] = []
        ended = threading.Event()

        def begin() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda _: ended.set())

        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError:
            # The loop is closed: whoever still runs in another thread goes no further.
            coroutine.close()
            raise
        try:
            ended.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            ended.wait(_CANCEL_SECONDS)
            raise
        tasks[0].result()

    def close(self) -> None:
        """End the thread and the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
