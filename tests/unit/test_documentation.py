"""The documentation names what the code does."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from pathlens.gateway.metrics import Metrics
from pathlens.torchserve import TorchServe, TorchServeCollector, TorchServeSettings
from unit.torchserve.test_served_models import archive

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "service" / "pathlens").rglob("*.py"), *(ROOT / "handlers").glob("*.py")]


def test_every_reason_of_an_error_is_documented() -> None:
    reasons = {
        reason
        for source in SOURCES
        for reason in re.findall(r'reason(?:: str)? ?= ?"([A-Z_]{3,})"', source.read_text())
    }
    documented = set(re.findall(r"`([A-Z_]{3,})`", (ROOT / "docs" / "errors.md").read_text()))
    # What a class of errors says when nobody said more.
    defaults = {"INVALID_REQUEST", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert len(reasons) > 30
    assert reasons - defaults <= documented


def test_every_metric_is_documented(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.certificate_ends(lambda: 0.0)
    registries = metrics.registry, CollectorRegistry()
    registries[1].register(
        TorchServeCollector(TorchServe(TorchServeSettings(archives=(archive(tmp_path / "x.mar", "x"),))))
    )
    exposed = {
        family.name for registry in registries for family in registry.collect() if family.name.startswith("pathlens_")
    }
    documented = set(re.findall(r"`(pathlens_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    assert exposed == {name.removesuffix("_total") for name in documented}
