"""Where classifiers come from: a Python factory with weights, an exported program, or an ONNX file."""

import importlib
import io
import json
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pathlens.errors import CaptureError

_ARCHIVE_ENTRY = re.compile(
    r"[^/]+/(models/model\.json|data/(weights/(model_weights_config\.json|weight_\d+)"
    r"|constants/(model_constants_config\.json|tensor_\d+)|sample_inputs/model\.pt)"
    r"|archive_format|archive_version|byteorder|version|\.data/(version|serialization_id))"
)
"""What `torch.export.save` writes for a model of tensors: no compiled code and no pickled weights."""
# Possessive: text that is none would otherwise be tried in exponentially many ways.
_EXPRESSION = re.compile(r"('[a-z]+\d+'|[A-Z]\w*+|[a-z]+=(True|False)|\d++|[\s(),=+*/<>&|~-])*+")
"""Sizes are expressions that torch hands to an evaluator; these can name nothing but the classes of sympy."""
_NAME = re.compile(r"\w*")
"""Names of values become part of the source that torch makes of a graph and runs."""


def load_classifier(
    source: str,
    weights: Path | None = None,
    example: Tensor | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
) -> nn.Module | ExportedProgram:
    """Load a classifier.

    Args:
        source: "package.module:factory", where calling `factory()` makes a `torch.nn.Module`; or the path of a `.pt2`
            archive written by `torch.export.save`, or of an `.onnx` file. The current folder is searched for modules
            first.
        weights: For a factory: a safetensors file, or a state dict written by `torch.save`, read with
            `weights_only=True`. None keeps what the factory set.
        example: For an ONNX file, which needs it: preprocessed images, float32 [B, C, H, W], on which it is compared
            with ONNX Runtime.
        input_name: For an ONNX file: the input of the images, the only one that the logits need; None for that one.
        output_name: For an ONNX file: the output that gives the logits; None for the only one.

    Raises:
        CaptureError: If something is missing, does not fit or would need unpickling.
    """
    if source.endswith((".pt2", ".onnx")) and weights is not None:
        raise CaptureError(f"{source} holds its own weights; leave out {weights}.")
    if source.endswith(".onnx"):
        return _load_onnx(Path(source), example, input_name, output_name)
    if input_name is not None or output_name is not None:
        raise CaptureError(
            f"{source} is no ONNX file; leave out --input-name and --output-name, which choose among what one holds."
        )
    if source.endswith(".pt2"):
        return _load_exported(Path(source))
    model = _make(source)
    if weights is not None:
        _load_weights(model, weights)
    return model


def _make(source: str) -> nn.Module:
    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise CaptureError(
            f"Classifier {source!r} is neither package.module:factory nor the path of a .pt2 archive or an .onnx file."
        )
    current = str(Path.cwd())
    if current not in sys.path:
        sys.path.insert(0, current)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise CaptureError(f"Classifier {source!r} cannot be imported: {error}.") from error
    try:
        model = factory()
    except Exception as error:
        raise CaptureError(
            f"{source}() failed with {type(error).__name__}: {error}. The factory is called without arguments; wrap it "
            "in a function that makes the classifier."
        ) from error
    if not isinstance(model, nn.Module):
        raise CaptureError(f"{source}() returned {type(model).__name__}; expected a torch.nn.Module.")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    state: dict[str, Tensor]
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CaptureError(
            f"{path} is not a file of tensors alone, and loading it could run code. Save model.state_dict(), best as "
            "safetensors."
        ) from error
    except Exception as error:  # Damaged pickles fail in any way.
        raise CaptureError(f"The weights {path} cannot be read: {error}") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise CaptureError(f"The weights {path} do not fit {type(model).__name__}: {error}") from error


def _load_onnx(path: Path, example: Tensor | None, input_name: str | None, output_name: str | None) -> nn.Module:
    if example is None:
        raise CaptureError(f"{path} is an ONNX file, and its weights are fixed; give package.module:factory here.")
    # Not every installation can read ONNX files, and the other sources do without.
    from pathlens.onnx_import.loading import load_onnx_classifier

    return load_onnx_classifier(path, example, input_name, output_name)


def _load_exported(path: Path) -> ExportedProgram:
    try:
        content = _without_code(path)
    except (OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise CaptureError(f"{path} is not a .pt2 archive: {error}.") from error
    try:
        with warnings.catch_warnings():
            # torch's own code uses a deprecated form of its own tree library here.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            return torch.export.load(content)
    except Exception as error:
        raise CaptureError(f"{path} cannot be loaded by torch {torch.__version__}: {error}") from error


def _without_code(path: Path) -> io.BytesIO:
    """Copy an archive entry by entry, so that what torch reads is what was checked here.

    torch itself unpickles whatever an archive marks as pickled, and sample inputs that do not load as plain tensors.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(content, "w") as copy:
        names = archive.namelist()
        foreign = [name for name in names if not _ARCHIVE_ENTRY.fullmatch(name) or names.count(name) > 1]
        if foreign:
            raise CaptureError(
                f"{path} holds {', '.join(foreign)}, which may be pickled objects or compiled code. Save the program "
                "with torch.export.save."
            )
        for name in names:
            data = archive.read(name)
            if _could_run_code(name, data):
                raise CaptureError(f"{path} holds pickled objects ({name}), and loading it could run code.")
            copy.writestr(name, data)
    content.seek(0)
    return content


def _could_run_code(name: str, data: bytes) -> bool:
    """Tell whether torch would unpickle or evaluate more of an entry than tensors and sizes."""
    if name.endswith("_config.json"):
        kind = "weight_" if name.endswith("_weights_config.json") else "tensor_"
        return any(
            entry.get("use_pickle") or entry.get("tensor_meta") is None or not entry["path_name"].startswith(kind)
            for entry in json.loads(data)["config"].values()
        )
    if name.endswith("/sample_inputs/model.pt"):
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError):
            return True
    if name.endswith("/models/model.json"):
        model = json.loads(data)
        return not (
            all(map(_EXPRESSION.fullmatch, _texts(model, {"expr_str"})))
            and all(map(_NAME.fullmatch, _texts(model, {"name", "as_name", "forward_arg_names"})))
        )
    return False


def _texts(value: Any, keys: Set[str]) -> list[str]:
    """Return what stands under some keys, one text or a list of them, anywhere in a JSON value."""
    if isinstance(value, list):
        return [text for item in value for text in _texts(item, keys)]
    if not isinstance(value, dict):
        return []
    own = [content if isinstance(content, list) else [content] for key, content in value.items() if key in keys]
    return [str(text) for texts in own for text in texts] + _texts(list(value.values()), keys)
