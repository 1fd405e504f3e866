"""The classes of a classifier as requests name them: by index, by label, or by how probable they are."""

from collections.abc import Sequence

from pathlens.errors import NotFoundError
from pathlens.explanation import Targets


class ClassNames:
    """Finds classes.

    Args:
        labels: One per class. They may repeat (ImageNet has two cranes): the first class of that name answers to it.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._count = len(labels)
        self._index_of_label = {label: index for index, label in reversed(list(enumerate(labels)))}

    def index(self, selector: int | str, field: str) -> int:
        """Return the index of a class.

        Args:
            selector: Index or label.
            field: Of the request, for the error.

        Raises:
            NotFoundError: If there is no such class.
        """
        if isinstance(selector, str):
            if selector in self._index_of_label:
                return self._index_of_label[selector]
        elif 0 <= selector < self._count:
            return selector
        raise NotFoundError(
            f"There is no class {selector!r}; this classifier has {self._count} classes, numbered 0 to "
            f"{self._count - 1} and named by GetModel.",
            reason="CLASS_NOT_FOUND",
            field=field,
            metadata={"class": selector, "classes": self._count},
        )

    def targets(self, wanted: Targets, ranking: Sequence[int]) -> list[int]:
        """Return the classes that are to be explained, each once: the most probable ones, then those that are named.

        Args:
            wanted: What was asked; the most probable class if that is nothing.
            ranking: The most probable classes of the image, at least as many as are asked for.

        Raises:
            NotFoundError: If a class that is named does not exist.
        """
        top_k = wanted.top_k or (0 if wanted.class_indices or wanted.labels else 1)
        targets = [
            *ranking[:top_k],
            *(self.index(index, "options.targets.class_indices") for index in wanted.class_indices),
            *(self.index(label, "options.targets.labels") for label in wanted.labels),
        ]
        return list(dict.fromkeys(targets))
