"""Files for one batch size: they take any number of images, each with the logits that the file gives it, or none."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from onnx_files import EXPORTERS, Exporter, by_onnx_runtime, export, linear_model, node, written
from pathlens.classifier.capture import capture
from pathlens.errors import CaptureError
from pathlens.onnx_import.loading import load_onnx_classifier
from production_networks import coloured_images, production_network
from small_networks import CLASSES, SIDE, images, seeded


class Viewing(nn.Module):
    """Writes the batch size into its views, of which one keeps as many dimensions and one has fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(6 * 36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.conv(x))
        halves = maps.view(x.shape[0], 2, 3, 6, 6).transpose(1, 2).reshape(x.shape[0], 6, 6, 6)
        logits: Tensor = self.linear(halves.reshape(x.shape[0], -1))
        return logits


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_classifier_exported_for_one_batch_size_takes_any(exporter: Exporter, batch: int, tmp_path: Path) -> None:
    network = seeded(Viewing)
    path = written(export(network, exporter, example=images(batch), free_batch=False), tmp_path / "model.onnx")
    read = load_onnx_classifier(path, images(2))
    assert read.remarks == (f"The batch size {batch} that the file declares is not needed, and left out.",)
    classifier = capture(read, images(2))
    for count in (1, 2, 4, 5):
        torch.testing.assert_close(classifier(images(count)), network(images(count)), rtol=0, atol=1e-5)


def fixed(before: list[onnx.NodeProto], batch: int, **arrays: list[int]) -> onnx.ModelProto:
    numbers = {name: np.array(array, np.int64) for name, array in arrays.items()}
    return linear_model(before, shape=(batch, 3, SIDE, SIDE), arrays=numbers)


@pytest.mark.parametrize("target", [[4, 3, SIDE, SIDE], [4, -1, SIDE, SIDE], [4, 0, 0, SIDE], [-1, 3, SIDE, SIDE]])
def test_a_shape_that_begins_with_the_batch_size_takes_any(target: list[int], tmp_path: Path) -> None:
    path = written(fixed([node("Reshape", "image sizes", "pixels")], 4, sizes=target), tmp_path / "model.onnx")
    read = load_onnx_classifier(path, images(2))
    for count in (1, 3, 5):
        torch.testing.assert_close(read(images(count)), by_onnx_runtime(linear_model(), images(count)))


def turned(*middle: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Make nodes that work on images whose channels come before the batch, and are as many."""
    there, back = (node("Transpose", *names, perm=[1, 0, 2, 3]) for names in (("image", "a"), ("z", "pixels")))
    return [there, *middle, back]


TO_ROWS_AND_BACK = [node("Reshape", "a rows", "b"), node("Reshape", "b maps", "z")]


def test_a_first_size_that_is_equal_by_chance_may_stay(tmp_path: Path) -> None:
    path = written(fixed(turned(*TO_ROWS_AND_BACK), 3, rows=[3, -1], maps=[3, -1, 8, 8]), tmp_path / "model.onnx")
    read = load_onnx_classifier(path, images(2))
    for count in (1, 3, 5):
        torch.testing.assert_close(read(images(count)), by_onnx_runtime(linear_model(), images(count)))


BY_CHANCE = {
    "channels": fixed(turned(node("Reshape", "a maps", "z")), 3, maps=[3, 3, 8, 8]),
    "channels in rows": fixed(turned(*TO_ROWS_AND_BACK), 3, rows=[3, -1], maps=[3, 3, 8, 8]),
    "positions in rows": fixed(turned(*TO_ROWS_AND_BACK), 3, rows=[3, 3, 64], maps=[3, 3, 8, 8]),
    "channels of all images": fixed(
        [node("Reshape", "image rows", "a"), node("Reshape", "a maps", "pixels")], 3, rows=[9, 64], maps=[3, 3, 8, 8]
    ),
}
HALVES = [node("Slice", "image two end zero", "a"), node("Slice", "image zero two zero", "b")]
DIVIDED = [node("Shape", "image", "a"), node("Gather", "a zero", "b", axis=0), node("Max", "b three", "c")]
DEPENDING = {
    "divided by the batch size from 3 on": fixed(
        [*DIVIDED, node("Cast", "c", "d", to=onnx.TensorProto.FLOAT), node("Div", "image d", "pixels")],
        4,
        zero=[0],
        three=[3],
    ),
    "halves of a batch exchanged": fixed(
        [*HALVES, node("Concat", "a b", "pixels", axis=0)], 4, zero=[0], two=[2], end=[4]
    ),
    "softmax over the batch": fixed(
        [node("Reshape", "image maps", "a"), node("Softmax", "a", "pixels", axis=0)], 4, maps=[4, 3, 8, 8]
    ),
}


@pytest.mark.parametrize("name", [*BY_CHANCE, *DEPENDING])
def test_a_file_that_would_have_other_logits_in_other_batches_is_refused(name: str, tmp_path: Path) -> None:
    path = written((BY_CHANCE | DEPENDING)[name], tmp_path / "model.onnx")
    with pytest.raises(CaptureError, match=r"dynamic batch: torch\.onnx\.export"):
        load_onnx_classifier(path, images(2))


def test_a_class_token_that_is_stored_for_each_image_is_refused(tmp_path: Path) -> None:
    content = export(production_network("ViT"), example=coloured_images(1), free_batch=False)
    with pytest.raises(CaptureError, match=r"batches of 1 only; .*dynamic batch: .*dynamic_shapes"):
        load_onnx_classifier(written(content, tmp_path / "model.onnx"), coloured_images(2))


def test_a_batch_size_that_the_input_does_not_declare_is_named(tmp_path: Path) -> None:
    arrays = {"sizes": np.array([1, 3, SIDE, SIDE], np.int64)}
    model = linear_model([node("Reshape", "image sizes", "pixels")], arrays=arrays)
    with pytest.raises(CaptureError, match=r"batches of 1 only; .*dynamic batch"):
        load_onnx_classifier(written(model, tmp_path / "model.onnx"), images(2))
