import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from fixture_data import CLASSIFIERS, needs_fixtures
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.program import Program
from pathlens.errors import CaptureError
from real_captures import real
from small_networks import NETWORKS, Plain, captured, images, seeded


def with_first_call(classifier: CapturedClassifier, **changes: Any) -> str:
    data = json.loads(classifier.program.to_json())
    data["calls"][0].update(changes)
    return json.dumps(data)


def rebuilt(text: str, classifier: CapturedClassifier) -> CapturedClassifier:
    return CapturedClassifier(Program.from_json(text), classifier.weights)


class TestRoundTrip:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_gives_an_equal_program_and_the_same_bytes(self, name: str) -> None:
        program = captured(name).program
        text = program.to_json()
        again = Program.from_json(text)
        assert again.to_json() == text
        assert (again.taps, again.input_shape, again.classes) == (program.taps, program.input_shape, program.classes)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_gives_the_same_logits_to_the_last_bit(self, name: str) -> None:
        classifier = captured(name)
        again = rebuilt(classifier.program.to_json(), classifier)
        assert torch.equal(again(images(3)), classifier(images(3)))

    @needs_fixtures
    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_gives_the_same_logits_for_real_networks(self, name: str) -> None:
        classifier = real(name)
        x = torch.rand(2, *classifier.input_shape)
        assert torch.equal(rebuilt(classifier.program.to_json(), classifier)(x), classifier(x))

    def test_keeps_numbers_that_json_cannot_hold(self) -> None:
        class Masked(nn.Module):
            def forward(self, x):  # type: ignore[no-untyped-def]
                return torch.relu(x.masked_fill(x < 0, float("-inf")).clamp(max=float("inf"))).mean((2, 3))

        classifier = capture(Masked(), images(2))
        assert torch.equal(rebuilt(classifier.program.to_json(), classifier)(images(3)), classifier(images(3)))

    @pytest.mark.parametrize("name", NETWORKS)
    def test_holds_no_path_of_the_machine(self, name: str) -> None:
        text = captured(name).program.to_json()
        assert "/" not in text
        assert ".py" not in text


class TestRefusals:
    @pytest.mark.parametrize(
        "function",
        [
            *(
                "os.system",
                "builtins.eval",
                "operator.itemgetter",
                "operator.attrgetter",
                "aten.x",
                "aten.relu",
                "relu",
                "",
            ),
            *("aten.relu.nowhere", "aten.nowhere.default", "aten.relu.default.__call__", "torch.load"),
            *("aten.relu.__class__", "aten.__class__.mro", "aten._dir.append", "aten.__dict__.update"),
        ],
    )
    def test_a_function_that_is_no_tensor_operator(self, function: str) -> None:
        with pytest.raises(CaptureError, match="damaged"):
            rebuilt(with_first_call(captured("plain"), function=function), captured("plain"))

    @pytest.mark.parametrize("function", ["aten.relu_.default", "aten.copy_.default", "aten.add.out"])
    def test_an_operator_that_would_change_the_weights(self, function: str) -> None:
        with pytest.raises(CaptureError, match="damaged"):
            rebuilt(with_first_call(captured("plain"), function=function), captured("plain"))

    def test_the_operators_that_read_and_write_files(self) -> None:
        schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")]
        found = {schema.name for schema in schemas if any("file" in item.name for item in schema.arguments)}
        assert found == {"aten::from_file", "aten::save"}
        for name in found:
            function = f"aten.{name.removeprefix('aten::')}.default"
            with pytest.raises(CaptureError, match="damaged"):
                rebuilt(with_first_call(captured("plain"), function=function), captured("plain"))

    @pytest.mark.parametrize(
        "argument",
        [
            *({"call": "nowhere"}, {"weight": "nowhere"}, {"dtype": "load"}, {"layout": "float32"}),
            *({"unknown": 1}, {}, {"dtype": "float32", "layout": "strided"}, {"float": "many"}),
        ],
    )
    def test_an_argument_that_refers_to_nothing(self, argument: dict[str, Any]) -> None:
        with pytest.raises(CaptureError, match="damaged"):
            rebuilt(with_first_call(captured("plain"), arguments=[argument]), captured("plain"))

    @pytest.mark.parametrize(
        ("function", "keyword"),
        [
            ("aten.relu.default", "nowhere"),
            # PyTorch writes keywords as they are into the source that it makes of a graph and runs.
            ("aten.relu.default", "self=print('this code came with a bundle'), nowhere"),
            ("operator.add", "a=print('this code came with a bundle'), b"),
            ("aten.uniform.default", "from"),
        ],
    )
    def test_a_keyword_that_the_operator_does_not_know(self, function: str, keyword: str) -> None:
        text = with_first_call(captured("plain"), function=function, keywords={keyword: 1})
        with pytest.raises(CaptureError, match="damaged"):
            rebuilt(text, captured("plain"))

    def test_an_operation_on_fewer_numbers_than_it_takes(self) -> None:
        with pytest.raises(CaptureError, match="damaged"):
            rebuilt(with_first_call(captured("plain"), function="operator.add", arguments=[1]), captured("plain"))

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "{}", '{"calls": 5}', '"text"'])
    def test_what_is_no_program(self, text: str) -> None:
        with pytest.raises(CaptureError, match="not a stored program"):
            Program.from_json(text)

    @pytest.mark.parametrize("key", ["input_shape", "classes", "calls", "output", "taps"])
    def test_a_program_with_a_missing_part(self, key: str) -> None:
        data = json.loads(captured("plain").program.to_json())
        del data[key]
        with pytest.raises(CaptureError, match="not a stored program"):
            Program.from_json(json.dumps(data))

    def test_a_call_with_an_unknown_key(self) -> None:
        with pytest.raises(CaptureError, match="not a stored program"):
            Program.from_json(with_first_call(captured("plain"), code="print()"))

    def test_a_tap_without_its_call(self) -> None:
        data = json.loads(captured("plain").program.to_json())
        data["taps"][1]["node"] = "elsewhere"
        with pytest.raises(CaptureError, match="elsewhere"):
            rebuilt(json.dumps(data), captured("plain"))


class TestFingerprint:
    def test_is_equal_for_two_captures_of_equal_networks(self) -> None:
        one, other = (capture(seeded(Plain), images(2, seed=seed)) for seed in (1, 2))
        assert one.fingerprint == other.fingerprint

    def test_survives_a_round_trip_whatever_the_order_of_the_weights(self) -> None:
        classifier = captured("residual")
        weights = dict(reversed(classifier.weights.items()))
        again = CapturedClassifier(Program.from_json(classifier.program.to_json()), weights)
        assert again.fingerprint == classifier.fingerprint

    def test_changes_with_a_single_weight(self) -> None:
        classifier = captured("plain")
        weights = {name: weight.clone() for name, weight in classifier.weights.items()}
        weights["linear.bias"][0] += 1e-6
        assert CapturedClassifier(classifier.program, weights).fingerprint != classifier.fingerprint

    def test_changes_with_the_program(self) -> None:
        kinds = [capture(seeded(lambda kind=kind: Plain(kind())), images(2)) for kind in (nn.ReLU, nn.SiLU)]  # type: ignore[misc]
        assert kinds[0].fingerprint != kinds[1].fingerprint

    def test_changes_with_the_choice_of_taps(self) -> None:
        some = capture(seeded(Plain), images(2), taps=["activation.relu#1"])
        assert some.fingerprint != captured("plain").fingerprint

    def test_is_equal_in_another_process(self) -> None:
        script = (
            "import sys; sys.path[:0] = ['tests']\n"
            "from small_networks import captured; print(captured('residual').fingerprint)"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == captured("residual").fingerprint
