from hypothesis import given
from hypothesis import strategies as st

from pathlens.gateway.quoting import shortened


@given(st.text(max_size=80))
def test_a_short_text_stays_as_it_is(text: str) -> None:
    assert shortened(text) == text


def test_a_long_text_ends_in_an_ellipsis() -> None:
    assert shortened("x" * 1_000_000) == "x" * 79 + "…"
