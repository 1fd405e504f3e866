import pytest
from torch import nn

from fixture_data import CLASSIFIERS, needs_fixtures
from pathlens.classifier.capture import capture
from real_captures import real
from small_networks import ACTIVATIONS, GATES, Gated, Plain, captured, images


def names_of(network: nn.Module) -> list[str]:
    return [tap.name for tap in capture(network, images(2)).taps]


class TestNames:
    def test_a_reused_module_is_counted_by_its_calls(self) -> None:
        assert [tap.name for tap in captured("residual").taps] == [
            "layer1.0.relu.relu#1",
            "layer1.0.relu.relu#2",
            "layer1.1.relu.relu#1",
            "layer1.1.relu.relu#2",
        ]

    def test_a_functional_call_is_named_by_the_module_that_makes_it(self) -> None:
        assert [tap.name for tap in captured("concatenating").taps] == ["relu#1", "relu#2"]

    def test_a_modules_call_is_named_by_the_module_and_the_function(self) -> None:
        assert [tap.name for tap in captured("depthwise").taps] == ["body.1.relu6#1", "body.3.relu6#1"]

    @needs_fixtures
    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_no_two_taps_of_a_real_network_share_a_name(self, name: str) -> None:
        names = [tap.name for tap in real(name).taps]
        assert len(set(names)) == len(names) == CLASSIFIERS[name][0]

    @needs_fixtures
    def test_the_second_functional_relu_of_a_resnet_block_is_number_two(self) -> None:
        assert "layer1.0.relu#2" in [tap.name for tap in real("cifar_resnet20").taps]


class TestWhatIsATap:
    @pytest.mark.parametrize("kind", ["sigmoid", "hardsigmoid"])
    def test_a_sigmoid_that_is_read_by_a_layer_is_a_tap(self, kind: str) -> None:
        activation = ACTIVATIONS[kind][1]()
        assert names_of(Plain(activation)) == [f"{kind}#1", f"{kind}#2"]

    @pytest.mark.parametrize("spread", GATES)
    def test_the_sigmoid_of_squeeze_and_excitation_is_a_gate_and_no_tap(self, spread: str) -> None:
        assert names_of(Gated(GATES[spread])) == ["relu#1", "silu#1"]

    def test_a_handwritten_silu_leaves_the_other_activations(self) -> None:
        network = nn.Sequential(Plain(lambda x: x * x.sigmoid()), nn.Softplus())
        assert names_of(network) == ["1.softplus#1"]

    def test_relu6_is_told_from_other_hard_tangents(self) -> None:
        network = nn.Sequential(
            *(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Hardtanh(-1, 1), nn.Hardtanh(0, 5)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        )
        assert [tap.activation for tap in capture(network, images(2)).taps] == ["relu6", "hardtanh", "hardtanh"]


class TestShapes:
    def test_shapes_are_those_of_the_activations_without_the_batch(self) -> None:
        classifier = captured("plain")
        trace = classifier.trace(images(3))
        assert [tap.shape for tap in classifier.taps] == [tuple(value.shape[1:]) for value in trace.activations]

    @pytest.mark.parametrize(
        ("name", "channels"),
        [
            ("plain", [6, 5]),
            ("dense", [10, 7]),
            ("channels last", [12]),
            ("normalised across channels", [6]),
            ("transformer", [16]),
            ("gated", [6, 3]),
        ],
    )
    def test_channels_are_counted_along_the_dimension_that_the_layer_before_writes(
        self, name: str, channels: list[int]
    ) -> None:
        assert [tap.channels for tap in captured(name).taps] == channels

    def test_channels_are_followed_through_a_permutation_before_the_activation(self) -> None:
        class Permuted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.linear = nn.Conv2d(3, 5, 3), nn.Linear(5, 3)

            def forward(self, x):  # type: ignore[no-untyped-def]
                return self.linear(nn.functional.gelu(self.conv(x).transpose(1, 3)).mean((1, 2)))

        assert capture(Permuted(), images(2)).taps[0].channel_dimension == 2
