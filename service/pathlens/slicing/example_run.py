"""A pathway network run once on an example, with every value kept: what does not depend on the image is read there."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.pathways.pathway import Pathway
from pathlens.slicing.channels import Channels
from pathlens.slicing.not_sliceable import NotSliceable
from pathlens.slicing.subject import Subject


class ExampleRun:
    """The values of a pathway network for two images.

    The first image is noise, which drives most neurons; the second is all zero, the mean image of most preprocessings.
    What does not depend on the image is equal in both rows.

    Args:
        subject: The classifier.
        pathway: Of one image.
    """

    def __init__(self, subject: Subject, pathway: Pathway) -> None:
        self.subject = subject
        self.pathway = pathway
        self.images = _example(subject.program.input_shape)
        self._values: Mapping[fx.Node, Any] = subject.run(self.images, pathway.edit)
        self._varying_size = frozenset(subject.calls)

    def logits(self, images: Tensor) -> Tensor:
        """Return those of the pathway network for other images."""
        return self.subject.run(images, self.pathway.edit)[self.subject.output]  # type: ignore[no-any-return]

    def value(self, node: fx.Node) -> Any:
        """Return what a node gave."""
        return self._values[node]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of what a node gave."""
        return tuple(self._values[node].shape)

    def shape_of_one(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of what a node gives for one image."""
        return tuple(self.subject.of_one_image(node))

    def is_static(self, node: fx.Node) -> bool:
        """Tell whether a node has the same value for every batch of images, whatever their number."""
        return node not in self._varying_size and node is not self.subject.images

    def is_tensor(self, node: fx.Node) -> bool:
        """Tell whether a node gives a tensor or several, rather than a size."""
        return isinstance(self._values[node], Tensor | tuple | list)

    def has_batch_first(self, node: fx.Node) -> bool:
        """Tell whether the first dimension of a value counts the images, and no other depends on their number."""
        shape, of_one = self.shape(node), self.shape_of_one(node)
        return shape[:1] == (2,) and of_one[:1] == (1,) and shape[1:] == of_one[1:]

    def constant(self, node: fx.Node, channels: Channels, wanted: Tensor) -> Tensor:
        """Return the constants of a value.

        Args:
            node: The call that makes the value.
            channels: Its channels.
            wanted: Numbers of channels, int64 [W].

        Returns:
            [1, ...] with all dimensions that count channels as one, of size W; zero where a channel varies. A single
            zero if all of them vary.

        Raises:
            NotSliceable: If what should be constant differs between the images, or has no row for each image.
        """
        axis, value = channels.first, self.value(node)
        constant = ~channels.varying[wanted]
        if not bool(constant.any()):
            return value.new_zeros(())  # type: ignore[no-any-return]
        value = value.flatten(axis, channels.end - 1)
        found = self._common_row(node, value.index_select(axis, wanted[constant].to(value.device)))
        result: Tensor = value.new_zeros((1, *value.shape[1:axis], len(wanted), *value.shape[axis + 1 :]))
        return result.index_copy_(axis, constant.nonzero()[:, 0].to(value.device), found)

    def row(self, node: fx.Node) -> Tensor:
        """Return a value that is a constant in all of its channels, [1, ...].

        Raises:
            NotSliceable: As `constant` does.
        """
        return self._common_row(node, self.value(node))

    def _common_row(self, node: fx.Node, rows: Tensor) -> Tensor:
        if not self.has_batch_first(node):
            raise NotSliceable(f"{node.name}, {list(rows.shape)}, is a constant that does not have the batch first")
        one, other = rows[:1], rows[1:]
        if not torch.equal(one, other):
            allowed = 1e-5 * float(one.abs().max())
            if not torch.allclose(one, other, rtol=0, atol=allowed):
                raise NotSliceable(f"{node.name} depends on the image where it should be constant")
        return one


def _example(shape: tuple[int, int, int]) -> Tensor:
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([noise, torch.zeros(1, *shape)])
