"""An exported explainer in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from pathlens.errors import ExplainerFileError
from pathlens.onnx_export import signature
from pathlens.onnx_export.metadata import metadata_of, read_graph


class ExplainerSession:
    """Runs an exported explainer on the CPU.

    Args:
        path: Its file.
        threads: Of every operator.

    Attributes:
        path: The file.
        metadata: What it says of itself.

    Raises:
        ExplainerFileError: If it is no explainer, or none that this ONNX Runtime can run.
    """

    def __init__(self, path: Path, threads: int) -> None:
        model = read_graph(path)
        self.path = path
        self.metadata = metadata_of(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that wait for more work in a loop would slow down what is timed beside this.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # What it warns of while it optimises a graph helps nobody who reads a table of differences.
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no base class of their own.
            raise ExplainerFileError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run {path} ({_versions(model)}): {_one_line(error)} "
                "Export it again with a lower --opset, or install a newer onnxruntime."
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""
        return tuple(self._outputs)

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """Explain images.

        Args:
            images: Preprocessed, float32 [B, C, H, W].

        Raises:
            ExplainerFileError: If the graph fails on them.
        """
        try:
            values = self._session.run(None, {signature.IMAGE: np.ascontiguousarray(images.numpy())})
        except Exception as error:
            raise ExplainerFileError(
                f"{self.path} fails on images of shape {list(images.shape)}: {_one_line(error)}"
            ) from error
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, values, strict=True)}


def _versions(model: onnx.ModelProto) -> str:
    opsets = ", ".join(f"opset {entry.version}{entry.domain and f' of {entry.domain}'}" for entry in model.opset_import)
    return f"{opsets}; IR version {model.ir_version}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith(".") else f"{text}."
