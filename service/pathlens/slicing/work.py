"""How much there is to compute."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def count_work(run: Callable[[], object]) -> int:
    """Count the floating-point operations of convolutions and matrix products, by the formulas of PyTorch.

    Args:
        run: Is run once, without gradients.
    """
    counter = _Counter()  # type: ignore[no-untyped-call]
    with counter:
        run()
    return counter.total


# PyTorch's own counter watches the modules of all threads meanwhile, and so breaks gradients that others compute.
class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is aten.mkldnn_convolution.default:
            # Has no formula of its own, and other places for its arguments.
            images, kernel, bias, padding, stride, dilation, groups = args
            zeros = [0] * len(padding)
            func, args = (
                aten.convolution.default,
                (images, kernel, bias, stride, padding, dilation, False, zeros, groups),
            )
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
