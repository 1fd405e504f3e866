import asyncio
import threading
import warnings

import pytest

from pathlens.serving.loop_thread import LoopThread

PATIENCE_SECONDS = 10.0


class Waiting(threading.Thread):
    """Runs a coroutine without an end from a thread of its own, and keeps what that came to."""

    def __init__(self, loop: LoopThread) -> None:
        super().__init__(daemon=True)
        self._loop_thread = loop
        self.begun = threading.Event()
        self.cleaned_up = False
        self.outcome: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._loop_thread.run(self._endless())
        except BaseException as error:
            self.outcome = error

    async def _endless(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cleaned_up = True


def test_what_is_run_after_the_end_is_an_error_and_nothing_else() -> None:
    loop = LoopThread()
    loop.close()

    async def late() -> None:
        raise AssertionError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="closed"):
            loop.run(late())
    assert caught == []


def test_who_waits_for_a_coroutine_learns_of_the_end() -> None:
    loop = LoopThread()
    waiting = Waiting(loop)
    assert waiting.begun.wait(PATIENCE_SECONDS)
    loop.close()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()
    assert isinstance(waiting.outcome, RuntimeError)
    assert waiting.cleaned_up


def test_a_coroutine_that_is_cancelled_otherwise_says_so() -> None:
    loop = LoopThread()

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        loop.run(cancelled())
    loop.close()
