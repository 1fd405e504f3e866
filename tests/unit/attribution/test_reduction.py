import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathlens.attribution.reduction import reduce_channels
from pathlens.explanation import Reduction

MAPS = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 999)).map(
    lambda drawn: torch.randn(drawn[:4], generator=torch.Generator().manual_seed(drawn[4]))
)


class TestReduction:
    @given(MAPS)
    def test_none_is_the_map_itself(self, gradient: Tensor) -> None:
        assert reduce_channels(gradient, Reduction.NONE) is gradient

    @given(MAPS)
    def test_the_signed_maximum_is_one_of_the_channels_and_none_is_greater(self, gradient: Tensor) -> None:
        reduced = reduce_channels(gradient, Reduction.SIGNED_MAXIMUM)
        assert bool((gradient == reduced[:, None]).any(1).all())
        assert torch.equal(reduced.abs(), gradient.abs().amax(1))

    @given(MAPS)
    def test_the_signed_maximum_turns_with_the_sign(self, gradient: Tensor) -> None:
        turned = reduce_channels(-gradient, Reduction.SIGNED_MAXIMUM)
        assert torch.equal(turned, -reduce_channels(gradient, Reduction.SIGNED_MAXIMUM))

    @given(MAPS)
    def test_the_magnitude_sum_adds_up_the_magnitudes(self, gradient: Tensor) -> None:
        expected = sum(channel.abs() for channel in gradient.unbind(1))
        assert torch.allclose(reduce_channels(gradient, Reduction.MAGNITUDE_SUM), torch.as_tensor(expected))

    @given(MAPS)
    def test_a_batch_is_reduced_image_by_image(self, gradient: Tensor) -> None:
        for reduction in (Reduction.SIGNED_MAXIMUM, Reduction.MAGNITUDE_SUM):
            alone = torch.stack([reduce_channels(image, reduction) for image in gradient])
            assert torch.equal(reduce_channels(gradient, reduction), alone)

    @given(MAPS)
    def test_the_signed_maximum_is_the_first_value_of_greatest_magnitude(self, gradient: Tensor) -> None:
        # Rounded, many values of a pixel have equal magnitudes.
        rounded = gradient.round()
        first = rounded.abs().numpy().argmax(1)[:, None]
        expected = torch.from_numpy(np.take_along_axis(rounded.numpy(), first, 1)[:, 0])
        assert torch.equal(reduce_channels(rounded, Reduction.SIGNED_MAXIMUM), expected)

    def test_the_first_of_equal_magnitudes_gives_the_sign(self) -> None:
        gradient = torch.tensor([-2.0, 2.0, 1.0]).reshape(3, 1, 1)
        assert reduce_channels(gradient, Reduction.SIGNED_MAXIMUM).tolist() == [[-2.0]]
