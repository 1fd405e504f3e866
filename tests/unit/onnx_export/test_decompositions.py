"""Gradients made of other operators equal PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from pathlens.onnx_export.decompositions import convolution_backward, decompositions, slice_backward
from pathlens.onnx_export.separable import separable_gradients

aten = torch.ops.aten
small = st.integers(1, 3)


@settings(max_examples=150)
@given(
    st.tuples(small, small), st.tuples(small, small), st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.tuples(small, small), small, small, small, st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_the_gradient_of_a_convolution_of_any_geometry_is_torchs(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    inputs: int,
    outputs: int,
    transposed: bool,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(2, inputs * groups, 9, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    shape = (inputs * groups, outputs, *kernel) if transposed else (outputs * groups, inputs, *kernel)
    weight = torch.randn(shape, generator=draw, dtype=torch.float64)
    extra = [min(seed % 2, step - 1) if transposed else 0 for step in stride]
    try:
        result = aten.convolution(images, weight, None, stride, padding, dilation, transposed, extra, groups)
    except RuntimeError:
        assume(False)
    grad = torch.randn(result.shape, generator=draw, dtype=torch.float64)
    (expected,) = torch.autograd.grad(result, images, grad)
    actual, _, _ = convolution_backward(
        grad, images, weight, None, stride, padding, dilation, transposed, extra, groups, [True, False, False]
    )
    assert actual is not None
    torch.testing.assert_close(actual, expected)


@given(st.integers(-9, 9), st.integers(-9, 12), st.integers(1, 4), st.integers(1, 2))
def test_the_gradient_of_a_slice_is_torchs(start: int, end: int, step: int, dimension: int) -> None:
    images = torch.randn(2, 7, 5, requires_grad=True)
    result = aten.slice(images, dimension, start, end, step)
    assume(result.numel())
    grad = torch.randn(result.shape)
    (expected,) = torch.autograd.grad(result, images, grad)
    assert slice_backward(grad, images.shape, dimension, start, end, step).equal(expected)


SEPARABLE = {
    "average pooling": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pooling that rounds up": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
    "average pooling with a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "bilinear resizing": lambda x: F.interpolate(x, size=(5, 13), mode="bilinear"),
    "bilinear resizing of corners": lambda x: F.interpolate(x, size=(5, 13), mode="bilinear", align_corners=True),
    "bicubic resizing": lambda x: F.interpolate(x, size=(11, 6), mode="bicubic"),
    "nearest resizing": lambda x: F.interpolate(x, size=(11, 6)),
    "mirrored margins": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "repeated margins": lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
}


@pytest.mark.parametrize("name", SEPARABLE)
def test_the_gradient_of_a_separable_operator_is_torchs(name: str) -> None:
    def gradient(images: torch.Tensor) -> torch.Tensor:
        leaf = images.detach().requires_grad_()
        result = SEPARABLE[name](leaf)
        weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
        return torch.autograd.grad((result * weights).sum(), leaf)[0]

    images = torch.randn(2, 3, 8, 9)
    traced = make_fx(gradient, decomposition_table=decompositions())(images)
    assert not {node.target for node in traced.graph.nodes} & {
        operator for operator in separable_gradients() if "backward" in operator.name()
    }
    torch.testing.assert_close(traced(images), gradient(images))


def test_the_gradient_of_a_kernel_is_not_silently_left_out() -> None:
    values = torch.ones(1, 1, 3, 3)
    for wanted in ([True, True, False], [True, False, True]):
        rest = ([0], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted)
        assert convolution_backward(values, values, values, *rest) is NotImplemented
