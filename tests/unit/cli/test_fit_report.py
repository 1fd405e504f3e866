"""What `pathlens fit` says of a bundle that can be served, and should not be trusted as it is."""

import copy
import io
from dataclasses import replace

from rich.console import Console

from pathlens.bundle.store import Bundle
from pathlens.cli.fit_report import warn
from pathlens.description import ClassPathwaySelection
from tiny_bundle import tiny_bundle

LIMIT = 0.2


def bundle(forcing: float | None, selection: ClassPathwaySelection = ClassPathwaySelection.TWO_SIDED) -> Bundle:
    """Make a bundle whose first class forces others to this share, and whose fit was asked for `LIMIT`."""
    made = tiny_bundle()
    statistics = {}
    for place, (label, known) in enumerate(made.bank.statistics.items()):
        figures = replace(known.stored.figures, agreement=1.0, forcing=0.0 if place else forcing)
        statistics[label] = replace(known, stored=replace(known.stored, figures=figures), selection=selection)
    bank = copy.copy(made.bank)
    bank.statistics = statistics
    return replace(made, bank=bank, fit=made.fit.model_copy(update={"settings": {"class_forcing": LIMIT}}))


def warnings(made: Bundle) -> str:
    stream = io.StringIO()
    warn(made, Console(file=stream, width=1000))
    return "\n".join(line for line in stream.getvalue().splitlines() if "--class-" in line)


def test_a_class_that_forces_more_than_was_asked_for_is_named() -> None:
    made = bundle(forcing=0.48)
    text = warnings(made)
    first = made.labels[next(iter(made.bank.statistics))]
    assert f"The pathway of {first} (48%)" in text
    assert "more than the 20% that --class-forcing asks for" in text


def test_a_class_that_forces_as_little_as_was_asked_for_is_passed_over() -> None:
    assert warnings(bundle(forcing=LIMIT)) == ""
    assert warnings(bundle(forcing=None)) == ""


def test_pathways_by_frequency_have_no_bound_but_a_half() -> None:
    assert warnings(bundle(0.48, ClassPathwaySelection.FREQUENCY)) == ""
    text = warnings(bundle(0.9, ClassPathwaySelection.FREQUENCY))
    assert "(90%)" in text
    assert "--class-pathways two-sided" in text
