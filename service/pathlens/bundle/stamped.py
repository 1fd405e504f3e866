"""Tensor files that name the classifier they belong to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from pathlens.errors import BundleError

_STAMP = "classifier_sha256"


def stamped_bytes(tensors: Mapping[str, Tensor], fingerprint: str) -> bytes:
    """Return tensors in safetensors format, stamped with the hash of their classifier."""
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(contiguous, {_STAMP: fingerprint})


def read_stamped(path: Path, fingerprint: str) -> dict[str, Tensor]:
    """Read the tensors of a file.

    Raises:
        BundleError: If the file is damaged, or belongs to a classifier of another hash.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stamp = (file.metadata() or {}).get(_STAMP)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a handle, not a mapping
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}") from error
    if stamp != fingerprint:
        raise BundleError(f"{path} belongs to classifier {stamp}, not to {fingerprint}.")
    return tensors


@contextmanager
def fitting_the_classifier(path: Path) -> Iterator[None]:
    """Tell in one way of tensors that are not what the classifier and the manifest call for.

    Args:
        path: The file that they were read from.

    Raises:
        BundleError: What is done with them inside fails.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"{path} does not fit the classifier: {error}; fit it again.") from error
