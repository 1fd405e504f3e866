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
        # What is begun at all is begun before the end, and so learns of it.
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run_loop, name="event-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end; whoever interrupts the waiting cancels it and waits for its end, too.

        Args:
            coroutine: What to run.

        Raises:
            RuntimeError: The loop is closed, or was closed before the coroutine had ended.
        """
        tasks: list[asyncio.Task[None]] = []
        ended = threading.Event()

        def begin() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda _: ended.set())

        with self._lock:
            if self._closing:
                # Whoever still runs in another thread goes no further.
                coroutine.close()
                raise RuntimeError("The event loop is closed.")
            self._loop.call_soon_threadsafe(begin)
        try:
            ended.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            ended.wait(_CANCEL_SECONDS)
            raise
        if self._closing and tasks[0].cancelled():
            raise RuntimeError("The event loop was closed before the end.")
        tasks[0].result()

    def close(self) -> None:
        """End the thread and the loop; what still runs in it is cancelled, and whoever waits for that told."""
        with self._lock:
            self._closing = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run_loop(self) -> None:
        self._loop.run_forever()
        # Again: what is cancelled may begin something else.
        while left := asyncio.all_tasks(self._loop):
            for task in left:
                task.cancel()
            _, stuck = self._loop.run_until_complete(asyncio.wait(left, timeout=_CANCEL_SECONDS))
            if stuck:
                return
