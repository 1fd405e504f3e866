import warnings

import pytest

from pathlens.serving.loop_thread import LoopThread


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
