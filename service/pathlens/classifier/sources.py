"""Where classifiers come from: a Python factory with weights, or an exported program."""

import importlib
import json
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pathlens.errors import CaptureError


def load_classifier(source: str, weights: Path | None = None) -> nn.Module | ExportedProgram:
    """Load a classifier.

    Args:
        source: "package.module:factory", where calling `factory()` makes a `torch.nn.Module`; or the path of a `.pt2`
            archive written by `torch.export.save`. The current folder is searched for modules first.
        weights: For a factory: a safetensors file, or a state dict written by `torch.save`, read with
            `weights_only=True`. None keeps what the factory set.

    Raises:
        CaptureError: If something is missing, does not fit or would need unpickling.
    """
    if source.endswith(".pt2"):
        if weights is not None:
            raise CaptureError(f"{source} holds its own weights; leave out {weights}.")
        return _load_exported(Path(source))
    if source.endswith(".onnx"):
        raise CaptureError(
            f"{source} is an ONNX file, which this version cannot read; give a factory or a .pt2 archive."
        )
    model = _make(source)
    if weights is not None:
        _load_weights(model, weights)
    return model


def _make(source: str) -> nn.Module:
    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise CaptureError(f"Classifier {source!r} is neither package.module:factory nor the path of a .pt2 archive.")
    current = str(Path.cwd())
    if current not in sys.path:
        sys.path.insert(0, current)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise CaptureError(f"Classifier {source!r} cannot be imported: {error}.") from error
    model = factory()
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
        model.load_state_dict(state)
    except pickle.UnpicklingError as error:
        raise CaptureError(
            f"{path} holds more than tensors, and loading it could run code. Save model.state_dict() alone, best as "
            "safetensors."
        ) from error
    except (OSError, safetensors.SafetensorError, RuntimeError, AttributeError, TypeError) as error:
        raise CaptureError(f"The weights {path} do not fit {type(model).__name__}: {error}") from error


def _load_exported(path: Path) -> ExportedProgram:
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if _asks_for_pickle(archive, name)]
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise CaptureError(f"{path} is not a .pt2 archive: {error}.") from error
    if pickled:
        raise CaptureError(f"{path} holds pickled objects ({', '.join(pickled)}), and loading it could run code.")
    try:
        with warnings.catch_warnings():
            # torch's own code uses a deprecated form of its own tree library here.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            return torch.export.load(path)
    except Exception as error:
        raise CaptureError(f"{path} cannot be loaded by torch {torch.__version__}: {error}") from error


def _asks_for_pickle(archive: zipfile.ZipFile, name: str) -> bool:
    """Tell whether a payload table of the archive has an entry that torch would unpickle."""
    if not name.endswith(("_weights_config.json", "_constants_config.json")):
        return False
    entries = json.loads(archive.read(name)).get("config", {})
    return any(entry.get("use_pickle") or entry.get("tensor_meta") is None for entry in entries.values())
