import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.classifier.taps import Tap
from pathlens.generator.channel_means import ROWS, Glance, channel_means

TAPS = {
    "maps": Tap("a", "relu", (3, 4, 5), 0, "a"),
    "large maps": Tap("a", "relu", (3, 2 * ROWS + 7, 5), 0, "a"),
    "channels last": Tap("a", "relu", (4, 5, 3), 2, "a"),
    "tokens": Tap("a", "gelu", (7, 3), 1, "a"),
    "many tokens": Tap("a", "gelu", (3 * ROWS, 3), 1, "a"),
    "no positions": Tap("a", "relu", (3,), 0, "a"),
}

over_taps = pytest.mark.parametrize("tap", TAPS.values(), ids=TAPS)


@over_taps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_channel_mean_is_taken_over_all_positions(tap: Tap, dtype: torch.dtype) -> None:
    activation = torch.randn(2, *tap.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    means = channel_means(activation, tap)
    assert means.dtype == torch.float32
    expected = activation.float().movedim(1 + tap.channel_dimension, 1).reshape(2, 3, -1).mean(2)
    assert torch.allclose(means, expected, atol=1e-6)


@over_taps
def test_a_glance_sums_the_positions_that_it_counts(tap: Tap) -> None:
    constant = tap.spread(torch.tensor([[1.0, 2.0, 3.0]])).expand(2, *tap.shape)
    glance = Glance(tap)
    assert torch.allclose(glance(constant) / glance.count, torch.tensor([1.0, 2.0, 3.0]).expand(2, 3))
    # Masks are looked at in the same way.
    assert (glance(constant > 1.5) / glance.count).tolist() == [[0, 1, 1], [0, 1, 1]]


@given(st.integers(1, 5 * ROWS))
def test_a_glance_looks_at_few_rows_that_are_evenly_spread(rows: int) -> None:
    glance = Glance(Tap("a", "relu", (1, rows, 2), 0, "a"))
    seen = [row for row in range(rows) if float(glance(torch.eye(rows)[row].view(1, 1, rows, 1).expand(-1, -1, -1, 2)))]
    assert len(seen) == glance.count // 2 <= ROWS
    assert seen == list(range(0, rows, seen[1] if len(seen) > 1 else rows))
