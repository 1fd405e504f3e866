import copy
import re

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from fixture_data import CLASSIFIERS, needs_fixtures
from pathlens.classifier.capture import capture
from pathlens.errors import CaptureError
from real_captures import real, real_original
from small_networks import (
    ACTIVATIONS,
    CLASSES,
    GATES,
    NETWORKS,
    Gated,
    Plain,
    Transformer,
    captured,
    images,
    original,
    seeded,
)


def largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


def exported(network: nn.Module, batch: int, dynamic: bool) -> ExportedProgram:
    shapes = ({0: Dim("images")},) if dynamic else None
    return torch.export.export(network.eval(), (images(batch),), dynamic_shapes=shapes)


class Function(nn.Module):
    """A classifier that is one function of the images."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)  # type: ignore[operator]


class TestLogits:
    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_equal_the_originals_for_every_activation(self, name: str) -> None:
        activation, make = ACTIVATIONS[name]
        network = seeded(lambda: Plain(make()))
        classifier = capture(network, images(2))
        assert largest_difference(classifier(images(5, seed=1)), network(images(5, seed=1))) < 1e-5
        assert [tap.activation for tap in classifier.taps] == [activation, activation]

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("batch", [1, 2, 3, 64])
    def test_equal_the_originals_for_every_construct_and_batch_size(self, name: str, batch: int) -> None:
        x = images(batch, seed=batch)
        assert largest_difference(captured(name)(x), original(name)(x)) < 1e-5

    @pytest.mark.parametrize("spread", GATES)
    def test_equal_the_originals_with_a_gate_of_any_shape(self, spread: str) -> None:
        network = seeded(lambda: Gated(GATES[spread]))
        assert largest_difference(capture(network, images(2))(images(3, seed=1)), network(images(3, seed=1))) < 1e-5

    @needs_fixtures
    @pytest.mark.parametrize("name", CLASSIFIERS)
    @pytest.mark.parametrize("batch", [1, 5])
    def test_equal_the_originals_for_real_networks(self, name: str, batch: int) -> None:
        x = torch.rand(batch, 3, CLASSIFIERS[name][1], CLASSIFIERS[name][1])
        with torch.no_grad():
            expected = real_original(name)(x)
        assert largest_difference(real(name)(x), expected) < 1e-5 * max(1.0, float(expected.abs().max()))

    def test_are_float32_for_a_classifier_in_half_precision(self) -> None:
        network = seeded(Plain).bfloat16()
        classifier = capture(network, images(2).bfloat16())
        assert classifier(images(3).bfloat16()).dtype == torch.float32

    def test_do_not_depend_on_the_training_mode_of_the_original(self) -> None:
        network = seeded(NETWORKS["residual"]).train()
        assert torch.equal(capture(network, images(2))(images(3)), captured("residual")(images(3)))

    def test_an_example_of_one_image_does_not_fix_the_batch(self) -> None:
        network = seeded(Plain)
        assert largest_difference(capture(network, images(1))(images(7)), network(images(7))) < 1e-5

    def test_weights_that_share_memory_are_captured(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 3, padding=1)
                self.again, self.linear = self.conv, nn.Linear(3, CLASSES)
                self.register_buffer("first", self.conv.weight.detach()[:1])

            def forward(self, x: Tensor) -> Tensor:
                y = self.again(functional.relu(self.conv(x))) + functional.conv2d(
                    x, self.get_buffer("first"), padding=1
                )
                logits: Tensor = self.linear(functional.relu(y).mean((2, 3)))
                return logits

        network = seeded(Tied)
        classifier = capture(network, images(2))
        assert largest_difference(classifier(images(3)), network(images(3))) < 1e-5
        assert len(classifier.fingerprint) == 64


class TestTheOriginal:
    def test_keeps_its_modes_weights_and_gradients(self) -> None:
        network = NETWORKS["residual"]()
        network.train()
        network.get_submodule("layer1.0").eval()
        before = copy.deepcopy(network.state_dict())
        modes = [module.training for module in network.modules()]
        capture(network, images(2))
        assert [module.training for module in network.modules()] == modes
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_changes_afterwards_without_changing_the_capture(self) -> None:
        network = seeded(Plain)
        classifier = capture(network, images(2))
        before = classifier(images(2))
        with torch.no_grad():
            network.get_parameter("conv1.weight").zero_()
        assert torch.equal(classifier(images(2)), before)

    def test_gets_no_gradients_from_explanations(self) -> None:
        network = Plain()
        classifier = capture(network, images(2))
        torch.autograd.backward(classifier.trace(images(2).requires_grad_()).logits.sum())
        assert all(parameter.grad is None for parameter in network.parameters())


class TestChoosingTaps:
    def test_named_taps_are_kept_in_call_order(self) -> None:
        names = ["layer1.1.relu.relu#1", "layer1.0.relu.relu#2"]
        assert [tap.name for tap in capture(original("residual"), images(2), taps=names).taps] == names[::-1]

    def test_the_name_of_one_tap_selects_it_alone(self) -> None:
        classifier = capture(original("plain"), images(2), taps="activation.relu#2")
        assert [tap.name for tap in classifier.taps] == ["activation.relu#2"]

    @pytest.mark.parametrize("taps", [[], ["activation.relu#1", "nowhere.relu#1"], "activation.relu#22"])
    def test_unknown_names_are_refused_with_those_there_are(self, taps: str | list[str]) -> None:
        with pytest.raises(CaptureError, match=r"activation\.relu#1, activation\.relu#2"):
            capture(original("plain"), images(2), taps=taps)


class TestRefusals:
    def assert_refused(self, function: object, *words: str) -> None:
        with pytest.raises(CaptureError) as refusal:
            capture(Function(function), images(2))
        assert all(word in str(refusal.value) for word in words), str(refusal.value)

    def test_no_activation_at_all(self) -> None:
        self.assert_refused(lambda x: x.mean((2, 3)), "No activation function", "none at all")

    def test_control_flow_on_tensor_values(self) -> None:
        self.assert_refused(lambda x: functional.relu(x if x.sum() > 0 else -x).mean((2, 3)), "Function", "torch.where")

    def test_a_tuple_of_outputs(self) -> None:
        self.assert_refused(lambda x: (functional.relu(x).mean((2, 3)), x), "tuple", "one tensor of logits")

    def test_a_single_class(self) -> None:
        self.assert_refused(lambda x: functional.relu(x).mean((1, 2, 3))[:, None], "1 logit", "at least 2 classes")

    def test_logits_that_are_not_finite(self) -> None:
        self.assert_refused(lambda x: functional.relu(x).mean((2, 3)) / 0, "not finite", "weights")

    def test_a_constant_batch(self) -> None:
        self.assert_refused(
            lambda x: functional.relu(x).reshape(2, 3, -1).mean(2), "batch", "keep the batch dimension free"
        )

    def test_a_dropped_batch_dimension(self) -> None:
        self.assert_refused(lambda x: functional.relu(x).mean((0, 2, 3)), "[3]", "[batch, classes]")

    def test_images_that_are_averaged_with_each_other(self) -> None:
        self.assert_refused(lambda x: functional.relu(x).mean((0, 2, 3))[None], "1 rows", "keep the batch dimension")

    def test_random_numbers(self) -> None:
        self.assert_refused(lambda x: functional.relu(x + torch.randn_like(x)).mean((2, 3)), "random")

    def test_a_custom_operator_by_name(self) -> None:
        @torch.library.custom_op("pathlens_tests::halve", mutates_args=())
        def halve(x: Tensor) -> Tensor:
            return x / 2

        @halve.register_fake
        def _(x: Tensor) -> Tensor:
            return torch.empty_like(x)

        self.assert_refused(
            lambda x: functional.relu(halve(x)).mean((2, 3)), "pathlens_tests.halve", "standard tensor operations"
        )

    def test_a_buffer_that_is_updated_in_each_call(self) -> None:
        class Counting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, x: Tensor) -> Tensor:
                self.get_buffer("calls").add_(1)
                return functional.relu(x).mean((2, 3))

        with pytest.raises(CaptureError, match=r"changes its own state .*calls.*update no buffer"):
            capture(Counting(), images(2))

    @pytest.mark.parametrize("tokens", [2, 4])
    def test_an_activation_whose_first_dimension_is_not_the_batch(self, tokens: int) -> None:
        network = Transformer(batch_first=False)
        # Two tokens in a batch of two: sizes alone do not tell which dimension is the batch.
        network.patches = nn.Conv2d(3, 8, (8 // (tokens // 2), 4), (8 // (tokens // 2), 4))
        with pytest.raises(CaptureError, match=r"block\.gelu#1.*batch_first=True"):
            capture(network, images(2))

    def test_an_activation_of_several_rows_for_each_image(self) -> None:
        self.assert_refused(
            lambda x: functional.relu(torch.cat([x, -x]))[: x.shape[0]].mean((2, 3)), "relu#1", "the batch"
        )

    def test_an_example_with_the_wrong_number_of_channels(self) -> None:
        with pytest.raises(CaptureError, match="3 channels, but got 1"):
            capture(Plain(), torch.rand(2, 1, 8, 8))

    @pytest.mark.parametrize(
        "example", [torch.rand(3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.rand(0, 3, 8, 8)]
    )
    def test_an_example_that_is_no_batch_of_images(self, example: Tensor) -> None:
        with pytest.raises(CaptureError, match=re.escape(f"{example.dtype} {list(example.shape)}")):
            capture(Plain(), example)


class TestExportedPrograms:
    def test_with_a_dynamic_batch_give_the_originals_logits(self) -> None:
        network = seeded(Plain)
        classifier = capture(exported(network, 2, dynamic=True), images(2))
        assert largest_difference(classifier(images(9)), network(images(9))) < 1e-5

    def test_have_the_taps_of_the_network_itself(self) -> None:
        names = [tap.name for tap in capture(exported(seeded(Plain), 2, dynamic=True), images(2)).taps]
        assert names == [tap.name for tap in captured("plain").taps]

    @pytest.mark.parametrize(("fixed", "given"), [(1, 1), (1, 2), (4, 2), (4, 4)])
    def test_with_a_fixed_batch_are_refused_with_the_remedy(self, fixed: int, given: int) -> None:
        with pytest.raises(CaptureError, match=rf"batch of {fixed} only.*Dim\("):
            capture(exported(Plain(), fixed, dynamic=False), images(given))

    def test_of_another_image_size_are_refused_naming_both(self) -> None:
        with pytest.raises(CaptureError, match=r"\[3, 8, 8\].*\[3, 9, 9\]"):
            capture(exported(Plain(), 2, dynamic=True), images(2, side=9))

    def test_of_two_inputs_are_refused(self) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return functional.relu(x + y).mean((2, 3))

        program = torch.export.export(Two(), (images(2), images(2)))
        with pytest.raises(CaptureError, match="takes 2 inputs"):
            capture(program, images(2))

    def test_in_training_mode_are_refused_because_they_change_their_statistics(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        program = torch.export.export(network.train(), (images(2),), dynamic_shapes=({0: Dim("images")},))
        with pytest.raises(CaptureError, match="evaluation mode"):
            capture(program, images(2))
