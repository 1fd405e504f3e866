"""Convolutions by other kernels are those of PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from pathlens.classifier import convolution
from pathlens.classifier.convolution import convolve

ONEDNN = torch.ops.aten.mkldnn_convolution.default
pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="this PyTorch has no oneDNN",
)


@pytest.fixture
def whatever_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_LEAST_WORK", 0)


def channels_last(shape: Sequence[int], seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Case:
    images: Tensor
    kernel: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def pairs(values: st.SearchStrategy[int]) -> st.SearchStrategy[list[int]]:
    return st.lists(values, min_size=2, max_size=2)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a convolution, one of two of those that oneDNN computes."""
    channels, outputs, groups = draw(st.integers(1, 6)), draw(st.integers(1, 6)), 1
    size, padding, stride, dilation = draw(pairs(st.integers(1, 3))), draw(pairs(st.integers(0, 2))), [1, 1], [1, 1]
    match draw(st.sampled_from(["pointwise", "depthwise", "any", "any in groups"])):
        case "pointwise":
            size, padding = [1, 1], [0, 0]
        case "depthwise":
            outputs = groups = channels
        case "any":
            stride, dilation = draw(pairs(st.integers(1, 2))), draw(pairs(st.integers(1, 2)))
        case _:
            outputs, groups = 2 * channels, channels
    images = channels_last((draw(st.integers(1, 3)), channels, draw(st.integers(5, 7)), draw(st.integers(5, 7))))
    kernel = channels_last((outputs, channels // groups, *size), 1)
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(2)) if draw(st.booleans()) else None
    layout = draw(st.sampled_from([torch.channels_last, torch.channels_last, torch.contiguous_format]))
    return Case(images.contiguous(memory_format=layout), kernel, bias, stride, padding, dilation, groups)


@hypothesis.given(cases())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=200)
def test_results_and_gradients_are_those_of_pytorch(whatever_the_work: None, case: Case) -> None:
    found, expected = (case.images.detach().clone().requires_grad_() for _ in range(2))
    others = (case.kernel, case.bias, case.stride, case.padding, case.dilation, case.groups)
    result, same = convolve(found, *others), torch.conv2d(expected, *others)
    torch.testing.assert_close(result, same, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(same.shape, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad(result, found, upstream)
    torch.testing.assert_close(gradient, torch.autograd.grad(same, expected, upstream)[0], rtol=1e-5, atol=1e-5)


def kernels_of(monkeypatch: pytest.MonkeyPatch, images: Tensor, kernel: Tensor, *rest: Any) -> int:
    """Count how often a convolution, forward and backward, calls oneDNN directly."""
    calls = []

    def noted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        result: Tensor = ONEDNN(*arguments)
        return result

    monkeypatch.setattr(convolution, "_onednn", lambda *a: noted(*a[:4], (1, 1), (1, 1), a[4]))
    leaf = images.detach().requires_grad_()
    torch.autograd.grad(convolve(leaf, kernel, *rest).sum(), leaf)
    return len(calls)


class TestOneDnnIsCalled:
    def test_for_pointwise_convolutions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert kernels_of(monkeypatch, channels_last((2, 32, 32, 32)), channels_last((16, 32, 1, 1))) == 2

    def test_for_depthwise_convolutions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, kernel = channels_last((2, 64, 32, 32)), channels_last((64, 1, 3, 3))
        assert kernels_of(monkeypatch, images, kernel, None, [1, 1], [1, 1], [1, 1], 64) == 2

    def test_not_for_few_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert kernels_of(monkeypatch, channels_last((1, 8, 8, 8)), channels_last((8, 8, 1, 1))) == 0

    def test_not_for_images_whose_channels_come_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = channels_last((2, 32, 32, 32)).contiguous()
        assert kernels_of(monkeypatch, images, channels_last((16, 32, 1, 1))) == 0

    def test_not_for_one_number_for_both_directions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, kernel = channels_last((2, 32, 32, 32)), channels_last((16, 32, 1, 1))
        assert kernels_of(monkeypatch, images, kernel, None, [1, 1], [0]) == 0

    def test_not_for_an_image_without_a_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert kernels_of(monkeypatch, torch.randn(32, 64, 64), channels_last((16, 32, 1, 1))) == 0

    def test_not_in_double_precision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, kernel = channels_last((2, 32, 32, 32)).double(), channels_last((16, 32, 1, 1)).double()
        assert kernels_of(monkeypatch, images, kernel) == 0

    def test_not_for_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, kernel = channels_last((2, 32, 32, 32)), channels_last((16, 32, 3, 3))
        assert kernels_of(monkeypatch, images, kernel, None, [1, 1], [1, 1]) == 0
        assert kernels_of(monkeypatch, images, channels_last((16, 32, 1, 1)), None, [2, 2]) == 0


def test_the_layout_of_the_images_is_kept() -> None:
    images, kernel = channels_last((2, 32, 32, 32)).requires_grad_(), channels_last((16, 32, 1, 1))
    result = convolve(images, kernel)
    (gradient,) = torch.autograd.grad(result.sum(), images)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_recorded_without_gradients() -> None:
    images = channels_last((2, 32, 32, 32)).requires_grad_()
    with torch.no_grad():
        assert convolve(images, channels_last((16, 32, 1, 1))).grad_fn is None
