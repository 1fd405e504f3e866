"""What is known of images beforehand: true labels and boxes, from a CSV file or from where the images are."""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import FiniteFloat, TypeAdapter, ValidationError

from pathlens.classifier.images import ImageSource
from pathlens.errors import ImagesError
from pathlens.evaluation.batch import Box

_BOXES = TypeAdapter(tuple[tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat], ...])


@dataclass(frozen=True)
class Annotation:
    """What is known of one image.

    Attributes:
        label: Its true class; None if unknown.
        boxes: Where the object is, in pixels of the image file; empty if unknown.
    """

    label: int | None = None
    boxes: tuple[Box, ...] = ()


def read_annotations(path: Path, labels: Sequence[str]) -> dict[str, Annotation]:
    """Read a CSV file, in UTF-8 with a line of column names.

    Columns: `file`, the path below the image folder; `label`, a class by its label text or its index; and one whose
    name begins with "boxes", a JSON list of [left, top, right, bottom]. Of the last two one may be missing; an empty
    cell tells nothing. Other columns are ignored.

    Args:
        path: The file.
        labels: The classifier's label texts, one per class. A text of digits that is itself a label means that label.

    Returns:
        By file name.

    Raises:
        ImagesError: If the file cannot be read or a line is malformed; the message names line, value and remedy.
    """
    try:
        content = path.read_bytes()
        # Spreadsheets put a byte order mark first.
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ImagesError(f"{path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ImagesError(
            f"{path}, line {line}: the byte 0x{byte:02X} is not UTF-8; save the file as UTF-8."
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return _read_lines(reader, labels)
    except csv.Error as error:
        raise ImagesError(
            f"{path}, line {reader.line_num}: not CSV ({error}); put values that hold commas or quotes in quotes, and "
            "double the quotes inside."
        ) from error
    except ValueError as error:
        raise ImagesError(f"{path}, line {reader.line_num}: {error}.") from error


def read_npz_labels(path: Path, labels: Sequence[str]) -> dict[str, Annotation] | None:
    """Read the array `labels` of an NPZ file of images.

    Args:
        path: The file.
        labels: The classifier's label texts, one per class.

    Returns:
        By the names that `pathlens.classifier.images.ImageSource` gives the images; None without such an array.

    Raises:
        ImagesError: If the file cannot be read, or the labels are not class indices, one per image.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if "labels" not in file:
                return None
            values, images = file["labels"], len(file["images"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ImagesError(f"{path} is not an NPZ file with images and labels: {error}") from error
    if not np.issubdtype(values.dtype, np.integer) or values.shape != (images,):
        raise ImagesError(
            f"labels in {path} is {values.dtype} {list(values.shape)}; expected an integer for each of {images} images."
        )
    outside = np.flatnonzero((values < 0) | (values >= len(labels)))
    if outside.size:
        raise ImagesError(
            f"labels[{outside[0]}] in {path} is {values[outside[0]]}; give a class index from 0 to {len(labels) - 1}."
        )
    return {f"images[{position}]": Annotation(label) for position, label in enumerate(values.tolist())}


def read_folder_labels(source: ImageSource, labels: Sequence[str]) -> dict[str, Annotation]:
    """Take the folder of each image for its class, if every folder is named after one class.

    Args:
        source: The images.
        labels: The classifier's label texts, one per class.

    Returns:
        By the names that the source gives the images; empty if a folder is no class, or is that of several.
    """
    if not source.class_names or any(labels.count(name) != 1 for name in source.class_names):
        return {}
    names = [PurePosixPath(source.name(position)) for position in range(len(source))]
    return {
        str(name): Annotation(labels.index(name.parent.name))
        for name in names
        if name.parent.name in source.class_names
    }


def _read_lines(lines: Iterator[list[str]], labels: Sequence[str]) -> dict[str, Annotation]:
    header = next(lines, [])
    file_column, label_column, boxes_column = (_column(header, name) for name in ("file", "label", "boxes"))
    if file_column is None or (label_column is None and boxes_column is None):
        raise ValueError(f"the columns are {header}; expected file, and label or boxes or both")
    annotations: dict[str, Annotation] = {}
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise ValueError(f"{len(cells)} values for {len(header)} columns; put values that hold commas in quotes")
        file = cells[file_column]
        if not file:
            raise ValueError("'' is no file; give the path of an image below the image folder")
        if file in annotations:
            raise ValueError(f"{file!r} is described a second time; leave one line for each image")
        annotations[file] = Annotation(
            None if label_column is None else _label(cells[label_column].strip(), labels),
            () if boxes_column is None else _boxes(cells[boxes_column].strip()),
        )
    return annotations


def _column(header: list[str], name: str) -> int | None:
    found = [
        number
        for number, column in enumerate(header)
        if column == name or (name == "boxes" and column.startswith(name))
    ]
    if len(found) > 1:
        raise ValueError(f"the columns {[header[number] for number in found]} are all of {name}; leave one of them")
    return found[0] if found else None


def _label(text: str, labels: Sequence[str]) -> int | None:
    if not text:
        return None
    meant = [index for index, label in enumerate(labels) if label == text]
    if len(meant) > 1:
        raise ValueError(f"the label {text!r} is that of the classes {meant}; give the index of one of them")
    if meant:
        return meant[0]
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) >= len(labels):
        raise ValueError(
            f"the label {text!r:.80} is no class; give a label of the classifier, such as {labels[0]!r}, or an index "
            f"from 0 to {len(labels) - 1}"
        )
    return int(text)


def _boxes(text: str) -> tuple[Box, ...]:
    if not text:
        return ()
    try:
        boxes = _BOXES.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(
            f"the boxes {text!r:.80} are no JSON list of [left, top, right, bottom] in numbers, such as "
            "[[10, 20, 110.5, 90]]"
        ) from error
    for left, top, right, bottom in boxes:
        if left >= right or top >= bottom:
            raise ValueError(
                f"the box {[left, top, right, bottom]} is empty; give left < right and top < bottom, in the order "
                "[left, top, right, bottom]"
            )
    return boxes
