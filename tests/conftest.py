"""What all tests share."""

from pathlib import Path

import hypothesis
import pytest

# No test is timed: a busy machine is slow and not wrong.
hypothesis.settings.register_profile("pathlens", deadline=None)
hypothesis.settings.load_profile("pathlens")

_TESTS = Path(__file__).parent
_OF_PROCESSES_AND_CLOCKS = [
    *(_TESTS / "unit" / room for room in ("cli", "client", "gateway", "observability", "reliability", "torchserve")),
    *(_TESTS / "unit" / f"test_{room}.py" for room in ("following", "lifecycle", "serving", "supervision")),
    _TESTS / "deploy",
    _TESTS / "service",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try once more what waits for real processes, and what tells patience from haste.

    A machine that stands still for a second, as shared ones do, fails such a test for no defect. The summary names
    each test that was tried again; one that fails twice has failed.
    """
    for item in items:
        if any(item.path.is_relative_to(place) for place in _OF_PROCESSES_AND_CLOCKS):
            item.add_marker(pytest.mark.flaky(reruns=1))
