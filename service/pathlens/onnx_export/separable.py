"""Gradients of average pooling, resizing and mirrored margins: linear maps along the rows, then along the columns.

Such an operator is y = R x Cᵀ for every channel, and its gradient Rᵀ g C. The two matrices are found by asking the
operator itself, so that nothing about kernels, margins or the positions of pixels is said a second time here. They do
not depend on the images, and are constants in the finished graph.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Map = Callable[[Tensor], Tensor]
"""Takes [planes, 1, height, width]."""


def separable_gradients() -> Mapping[Any, Callable[..., Any]]:
    """Return what stands in for the gradients of these operators, by operator."""
    return {
        aten.avg_pool2d.default: _average_pool_itself,
        aten.avg_pool2d_backward.default: _average_pool,
        aten._adaptive_avg_pool2d_backward.default: _adaptive_average_pool,
        aten._adaptive_avg_pool2d.default: _adaptive_average_pool_itself,
        aten.upsample_bilinear2d_backward.default: _resize(aten.upsample_bilinear2d.default),
        aten.upsample_bicubic2d_backward.default: _resize(aten.upsample_bicubic2d.default),
        aten.upsample_nearest2d_backward.default: _resize(aten.upsample_nearest2d.default),
        aten._upsample_nearest_exact2d_backward.default: _resize(aten._upsample_nearest_exact2d.default),
        aten.reflection_pad2d_backward.default: _margins(aten.reflection_pad2d.default),
        aten.replication_pad2d_backward.default: _margins(aten.replication_pad2d.default),
    }


def _average_pool_itself(images: Tensor, *settings: Any) -> Tensor:
    # kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    ceil_mode, divisor = settings[3:4] == (True,), settings[5:6]
    if images.ndim != 4 or not (ceil_mode or (divisor and divisor[0])) or not isinstance(images.shape[0], torch.SymInt):
        return NotImplemented  # type: ignore[no-any-return]
    # PyTorch's exporter forgets the divisor, and runtimes disagree about what the last window of a ceiling divides by.
    rows, columns = _matrices(lambda planes: aten.avg_pool2d(planes, *settings), images.shape[-2:])
    return _apply(images, rows, columns)


def _average_pool(grad: Tensor, images: Tensor, *settings: Any) -> Tensor:
    return _pull_back(grad, lambda planes: aten.avg_pool2d(planes, *settings), images.shape[-2:])


def _adaptive_average_pool(grad: Tensor, images: Tensor) -> Tensor:
    sizes = grad.shape[-2:]
    return _pull_back(grad, lambda planes: _plain_adaptive_average_pool(planes, sizes), images.shape[-2:])


def _adaptive_average_pool_itself(images: Tensor, sizes: Sequence[int]) -> Tensor:
    rows, columns = _matrices(lambda planes: _plain_adaptive_average_pool(planes, sizes), images.shape[-2:])
    return _apply(images, rows, columns)


def _plain_adaptive_average_pool(planes: Tensor, sizes: Sequence[int]) -> Tensor:
    height, width = planes.shape[-2:]
    rows = [planes[:, :, _start(i, height, sizes[0]) : _end(i, height, sizes[0])].mean(2) for i in range(sizes[0])]
    tall = torch.stack(rows, 2)
    columns = [tall[..., _start(i, width, sizes[1]) : _end(i, width, sizes[1])].mean(3) for i in range(sizes[1])]
    return torch.stack(columns, 3)


def _start(index: int, size: int, parts: int) -> int:
    return index * size // parts


def _end(index: int, size: int, parts: int) -> int:
    return -(-(index + 1) * size // parts)


def _resize(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def gradient(grad: Tensor, sizes: Sequence[int], input_size: Sequence[int], *settings: Any) -> Tensor:
        return _pull_back(grad, lambda planes: operator(planes, sizes, *settings), input_size[-2:])

    return gradient


def _margins(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def gradient(grad: Tensor, images: Tensor, padding: Sequence[int]) -> Tensor:
        return _pull_back(grad, lambda planes: operator(planes, padding), images.shape[-2:])

    return gradient


def _pull_back(grad: Tensor, function: Map, sizes: Sequence[int]) -> Tensor:
    rows, columns = _matrices(function, sizes)
    return _apply(grad, rows.t(), columns.t())


def _apply(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute R x Cᵀ."""
    across = _multiply(images, columns.t())
    return _multiply(across.transpose(2, 3), rows.t()).transpose(2, 3)


def _multiply(images: Tensor, matrix: Tensor) -> Tensor:
    # Not by matmul, which would spread the matrix over a batch of a size that it has not.
    product = aten.mm(images.reshape(-1, matrix.shape[0]), matrix)
    result: Tensor = product.reshape(*images.shape[:-1], matrix.shape[1])
    return result


def _matrices(function: Map, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Find R and C of a function of planes of a size."""
    height, width = sizes
    # One plane for each row, with ones in it and zeros elsewhere: R's columns, times what ones in all columns give.
    by_row = function(torch.eye(height)[:, None, :, None].expand(height, 1, height, width).contiguous())
    by_column = function(torch.eye(width)[:, None, None, :].expand(width, 1, height, width).contiguous())
    whole = function(torch.ones(1, 1, height, width))
    middle_row, middle_column = whole.shape[2] // 2, whole.shape[3] // 2
    rows = by_row[:, 0, :, middle_column].t()
    columns = by_column[:, 0, middle_row].t() / whole[0, 0, middle_row, middle_column]
    return rows, columns
