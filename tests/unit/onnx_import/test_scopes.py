"""Names of modules, from what exporters write into a file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onnx_files import EXPORTERS, Exporter, export, written
from pathlens.classifier.capture import capture
from pathlens.onnx_import.loading import load_onnx_classifier
from pathlens.onnx_import.scopes import module_paths
from small_networks import images, seeded


def owners(*names: str, weights: tuple[str, ...] = ()) -> list[str]:
    return module_paths([(name, "") for name in names], weights)


def noted(*scopes: str) -> str:
    return module_paths([("node_relu", str(list(scopes)))], ())[0]


class TestWhatTheNewerExporterNotes:
    def test_ends_with_the_module_before_the_call(self) -> None:
        assert noted("", "layer1", "layer1.0", "relu_1") == "layer1.0"
        assert noted("", "relu") == ""

    def test_leaves_out_the_number_of_the_call(self) -> None:
        assert noted("", "block", "block.relu@1", "relu_1") == "block.relu"

    @pytest.mark.parametrize("text", ["", "[", "[1, 2]", "['only']", "('a', 'b')", "__import__('os')", "[" * 10_000])
    def test_that_cannot_be_understood_leaves_the_name_of_the_node(self, text: str) -> None:
        assert module_paths([("/layer1/Relu", text)], ()) == ["layer1"]


class TestNamesOfTheOlderExporter:
    @pytest.mark.parametrize(
        ("name", "owner"),
        [
            ("/Relu", ""),
            ("/layer1/layer1.0/Relu_1", "layer1.0"),
            ("/layer1/layer1.0/relu/Relu", "layer1.0.relu"),
            ("/features/features.1/conv/conv.0/conv.0.2/Clip", "features.1.conv.0.2"),
            ("/blocks.0/blocks.0.1/Relu", "blocks.0.1"),
        ],
    )
    def test_lead_through_the_modules(self, name: str, owner: str) -> None:
        assert owners(name) == [owner]

    def test_number_the_calls_of_a_module(self) -> None:
        assert owners("/layer1/relu/Relu", "/layer1/relu_1/Relu", "/layer1/relu_2/Relu") == ["layer1.relu"] * 3

    def test_may_end_with_a_number_of_their_own(self) -> None:
        assert owners("/act_1/Relu", "/act_2/Relu") == ["act_1", "act_2"]
        assert owners("/a/relu/Relu", "/b/relu_1/Relu") == ["a.relu", "b.relu_1"]

    def test_are_told_from_numbers_by_the_weights(self) -> None:
        names = "/block/Relu", "/block_1/Relu"
        assert owners(*names, weights=("block.conv.weight", "block_1.conv.weight")) == ["block", "block_1"]
        assert owners(*names, weights=("block.conv.weight",)) == ["block", "block"]


class TestOtherNames:
    def test_are_themselves_the_owner(self) -> None:
        assert owners("Relu_12", "", "model/stage1/activation/Relu") == ["Relu_12", "", "model.stage1.activation"]


class Nested(nn.Module):
    """Sequences in sequences, a list of blocks, and modules that are called again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU())))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2)])
        self.relu, self.last, self.linear = nn.ReLU(), nn.ReLU6(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.relu(self.blocks[0](x) - 0.1)
        x = torch.relu(self.relu(x - 0.2) - 0.1)
        logits: Tensor = self.linear(self.last(x - 0.1).mean((2, 3)))
        return logits


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_taps_of_a_nested_network_are_called_as_in_pytorch(exporter: Exporter, tmp_path: Path) -> None:
    network, pixels = seeded(Nested), images(2)
    path = written(export(network, exporter), tmp_path / "model.onnx")
    taps = [tap.name for tap in capture(load_onnx_classifier(path, pixels), pixels).taps]
    assert taps == [tap.name for tap in capture(network, pixels).taps]
    assert "blocks.0.1.relu#2" in taps
