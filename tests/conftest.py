"""What all tests share."""

from pathlib import Path

import hypothesis
import pytest

# No test is timed: a busy machine is slow and not wrong.
hypothesis.settings.register_profile("pathlens", deadline=None)
hypothesis.settings.load_profile("pathlens")

_TESTS = Path(__file__).parent
_OF_PROCESSES_CLOCKS_AND_MEMORY = [
    *("deploy", "service"),
    *("unit/cli", "unit/client", "unit/fitting", "unit/gateway", "unit/observability", "unit/reliability"),
    *("unit/torchserve", "unit/test_following.py", "unit/test_lifecycle.py", "unit/test_serving.py"),
    *("unit/test_supervision.py", "unit/explainer/test_memory.py", "unit/pathways/test_no_state_left.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try once more what waits for real processes, tells patience from haste, or measures memory.

    A machine that stands still for a second, as shared ones do, or another layout of the heap fails such a test for no
    defect. The summary names each test that was tried again; one that fails twice has failed.
    """
    for item in items:
        if any(item.path.is_relative_to(_TESTS / place) for place in _OF_PROCESSES_CLOCKS_AND_MEMORY):
            item.add_marker(pytest.mark.flaky(reruns=1))
