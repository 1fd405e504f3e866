"""Images to fit on or to evaluate: a folder, a folder of class folders, or an NPZ file; read one at a time."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathlens.classifier.decoding import check_pixels, decode_image
from pathlens.errors import ImagesError, PathlensError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


class ImageSource:
    """A fixed sequence of images, in an order that is the same on every machine.

    Args:
        path: A folder of JPEG, PNG or WebP files, flat or with a folder for each class; or an NPZ file whose array
            `images` is uint8 [N, H, W, 3] or [N, H, W].

    Attributes:
        class_names: Names of the class folders in alphabetical order; empty without such folders.

    Raises:
        ImagesError: If there are no images.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.class_names: tuple[str, ...] = ()
        self._skipped: dict[int, str] = {}
        self._files: list[Path] = []
        self._array: NDArray[np.uint8] | None = None
        if path.is_dir():
            self._files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            self.class_names = tuple(sorted({file.parent.name for file in self._files if file.parent != path}))
        else:
            self._array = _read_npz(path)
        if len(self) == 0:
            raise ImagesError(
                f"{path} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))} or an NPZ."
            )

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be read so far, each with the reason."""
        return list(self._skipped.values())

    def name(self, position: int) -> str:
        """Return what an image is called: its path below the folder, with slashes, or its place in the NPZ file."""
        if self._array is not None:
            return f"images[{position}]"
        return self._files[position].relative_to(self._path).as_posix()

    def __len__(self) -> int:
        """Return the number of images, unreadable ones included."""
        return len(self._files) if self._array is None else len(self._array)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (position, RGB pixels uint8 [H, W, 3]); an unreadable image is noted in `skipped` and left out."""
        return self.select(range(len(self)))

    def select(self, positions: range | list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the images at some positions, as `__iter__` does for all."""
        for position in positions:
            try:
                if self._array is not None:
                    yield position, check_pixels(self._array[position])
                else:
                    yield position, decode_image(self._files[position].read_bytes())
            except (PathlensError, OSError) as error:
                name = str(self._files[position]) if self._files else f"images[{position}]"
                self._skipped[position] = f"{name}: {error}"


def _read_npz(path: Path) -> NDArray[np.uint8]:
    try:
        # numpy itself would leave a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            images: NDArray[np.uint8] = file["images"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ImagesError(f"{path} is neither a folder nor an NPZ file with an array named images: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ImagesError(
            f"images in {path} is {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, 3] or [N, H, W]."
        )
    return images
