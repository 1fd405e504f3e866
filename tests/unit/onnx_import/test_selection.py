"""Which input, output and sizes of a file are taken, and what is said where they do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from onnx_files import by_onnx_runtime, exported, linear_model, node, value, written
from pathlens.errors import CaptureError
from pathlens.onnx_import.loading import load_onnx_classifier
from pathlens.onnx_import.network import OnnxNetwork
from small_networks import CLASSES, SIDE, images


def load(model: onnx.ModelProto | bytes, folder: Path, **names: Any) -> OnnxNetwork:
    return load_onnx_classifier(written(model, folder / "model.onnx"), images(2), **names)


def refused(model: onnx.ModelProto | bytes, folder: Path, message: str, **names: Any) -> None:
    with pytest.raises(CaptureError, match=message):
        load(model, folder, **names)


class TestInputs:
    TWO = linear_model([node("Add", "image other", "pixels")], inputs=[value("other", shape=("batch", 3, SIDE, SIDE))])

    def test_are_not_asked_for_where_there_is_one(self, tmp_path: Path) -> None:
        assert load(linear_model(), tmp_path).remarks == ()

    @pytest.mark.parametrize("names", [{}, {"input_name": "image"}], ids=["no choice", "a choice"])
    def test_that_the_output_needs_beside_the_images_are_refused(self, names: Any, tmp_path: Path) -> None:
        message = "'logits' needs 2 inputs: 'image', 'other'. Export .* the images as its only input"
        refused(self.TWO, tmp_path, message, **names)

    def test_that_are_not_there_are_named(self, tmp_path: Path) -> None:
        model, message = linear_model(inputs=[value("unused")]), "'pixels' names no input .* 'image', 'unused'"
        refused(model, tmp_path, message, input_name="pixels")

    def test_that_the_output_does_not_use_may_stay_in_the_file(self, tmp_path: Path) -> None:
        model = linear_model(inputs=[value("unused")])
        assert load(model, tmp_path).remarks == ("Images are the input 'image' of 'image', 'unused'.",)
        refused(model, tmp_path, "does not depend on --input-name 'unused'", input_name="unused")

    def test_of_old_files_are_not_the_weights_that_they_list(self, tmp_path: Path) -> None:
        model = linear_model(inputs=[value("weight", shape=(3 * SIDE * SIDE, CLASSES))])
        assert load(model, tmp_path).remarks == ()

    @pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "UINT8", "INT64"])
    def test_of_another_type_are_refused(self, kind: str, tmp_path: Path) -> None:
        number = TensorProto.DataType.Value(kind)
        model = linear_model([node("Cast", "image", "pixels", to=TensorProto.FLOAT)], kind=number)
        refused(model, tmp_path, f"'image' takes {kind.lower()}; .*float32.*extract_model")

    def test_with_the_channels_last_are_given_them_so(self, tmp_path: Path) -> None:
        before = [node("Transpose", "image", "pixels", perm=[0, 3, 1, 2])]
        model = linear_model(before, shape=("batch", SIDE, SIDE, 3))
        network = load(model, tmp_path)
        torch.testing.assert_close(
            network(images(2)), by_onnx_runtime(model, images(2).permute(0, 2, 3, 1).contiguous()), rtol=0, atol=1e-5
        )
        assert network.remarks == ("The input 'image' takes images with the channels last.",)


class TestSizes:
    @pytest.mark.parametrize("shape", [("batch", 3, SIDE, SIDE), ("batch", 3, "height", "width"), ("a", "b", "c", "d")])
    def test_that_are_free_become_those_of_the_images(self, shape: tuple[Any, ...], tmp_path: Path) -> None:
        assert load(linear_model(shape=shape), tmp_path)(images(1)).shape == (1, CLASSES)

    @pytest.mark.parametrize(
        ("shape", "options"),
        [
            (("batch", 3, 9, SIDE), ", here --size 9x8 --colour rgb"),
            (("batch", 1, SIDE, SIDE), ", here --size 8 --colour grey"),
            (("batch", SIDE, SIDE, 1), ", here --size 8 --colour grey"),
            (("batch", 4, SIDE, SIDE), ""),
            (("batch", 1, "height", SIDE), ""),
        ],
    )
    def test_that_contradict_the_images_are_refused(self, shape: tuple[Any, ...], options: str, tmp_path: Path) -> None:
        declared = ", ".join(map(str, shape))
        message = rf"shape \[{declared}\], the images have \[batch, 3, 8, 8\].*--size and --colour{options}\.$"
        refused(linear_model(shape=shape), tmp_path, message)

    def test_that_only_a_weight_contradicts_are_refused_with_the_node(self, tmp_path: Path) -> None:
        path = written(linear_model(shape=("batch", 3, "height", "width")), tmp_path / "model.onnx")
        with pytest.raises(CaptureError, match=r"node 'MatMul of linear' cannot .*\[1, 243\].*--size"):
            load_onnx_classifier(path, images(2, side=9))

    def test_of_what_is_no_image_are_refused(self, tmp_path: Path) -> None:
        model = linear_model(shape=("batch", 192))
        refused(model, tmp_path, r"shape \[batch, 192\]; expected \[batch, channels, height, width\].*--input-name")


class TestOutputs:
    BOTH = linear_model(
        after=[node("Identity", "linear", "logits"), node("ArgMax", "linear", "label", axis=1)],
        outputs=[value("label", TensorProto.INT64, ("batch", 1)), value("logits")],
    )

    def test_have_to_be_chosen_where_there_are_several(self, tmp_path: Path) -> None:
        refused(self.BOTH, tmp_path, "has 2 outputs: 'label', 'logits'. Choose one by --output-name")

    def test_are_chosen_by_name_and_what_they_do_not_need_is_left_out(self, tmp_path: Path) -> None:
        network = load(self.BOTH, tmp_path, output_name="logits")
        expected = by_onnx_runtime(self.BOTH, images(2), "logits")
        torch.testing.assert_close(network(images(2)), expected, rtol=0, atol=1e-5)
        assert network.remarks == ("Logits are the output 'logits' of 'label', 'logits'.",)

    def test_that_are_not_there_are_named(self, tmp_path: Path) -> None:
        refused(self.BOTH, tmp_path, "--output-name 'no' names no output .* 'label', 'logits'", output_name="no")

    @pytest.mark.parametrize(
        ("after", "message"),
        [
            ([node("ReduceSum", "linear", "logits", keepdims=0)], r"float32 \[\] for a batch of 1"),
            ([node("Unsqueeze", "linear one", "logits")], r"float32 \[1, 1, 4\] for a batch of 1"),
            ([node("Cast", "linear", "logits", to=TensorProto.INT32)], r"int32 \[1, 4\] for a batch of 1"),
            ([node("Transpose", "linear", "logits")], r"float32 \[4, 1\] for a batch of 1"),
        ],
        ids=["a scalar", "three dimensions", "integers", "the batch last"],
    )
    def test_that_are_no_logits_are_refused(self, after: list[onnx.NodeProto], message: str, tmp_path: Path) -> None:
        model = linear_model(after=after, arrays={"one": np.array([1], np.int64)})
        refused(model, tmp_path, f"'logits' is {message}; expected logits, floating .*--output-name")

    def test_may_have_positions_of_which_there_is_one(self, tmp_path: Path) -> None:
        after, arrays = [node("Unsqueeze", "linear positions", "logits")], {"positions": np.array([2, 3], np.int64)}
        model = linear_model(after=after, outputs=[value("logits", shape=("batch", CLASSES, 1, 1))], arrays=arrays)
        assert load(model, tmp_path)(images(3)).shape == (3, CLASSES)


class TestASoftmaxAtTheEnd:
    TAKEN_OFF = "Took off the {} at the end: what goes into it are the logits."

    @pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
    def test_is_taken_off_and_this_is_said(self, operator: str, tmp_path: Path) -> None:
        network = load(linear_model(after=[node(operator, "linear", "logits", axis=-1)]), tmp_path)
        torch.testing.assert_close(network(images(2)), by_onnx_runtime(linear_model(), images(2)), rtol=0, atol=1e-5)
        assert network.remarks == (self.TAKEN_OFF.format(operator),)

    def test_is_found_before_what_only_changes_the_shape(self, tmp_path: Path) -> None:
        after = [node("Softmax", "linear", "p"), node("Reshape", "p sizes", "q"), node("Identity", "q", "logits")]
        network = load(linear_model(after=after, arrays={"sizes": np.array([0, -1], np.int64)}), tmp_path)
        torch.testing.assert_close(network(images(2)), by_onnx_runtime(linear_model(), images(2)), rtol=0, atol=1e-5)

    def test_is_found_where_its_shape_is_read_too(self, tmp_path: Path) -> None:
        after = [node("Softmax", "linear", "p"), node("Shape", "p", "sizes"), node("Reshape", "p sizes", "logits")]
        network = load(linear_model(after=after), tmp_path)
        torch.testing.assert_close(network(images(2)), by_onnx_runtime(linear_model(), images(2)), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("axis", [0, -2])
    def test_stays_where_it_goes_over_the_batch(self, axis: int, tmp_path: Path) -> None:
        model = linear_model(after=[node("Softmax", "linear", "logits", axis=axis)])
        refused(model, tmp_path, "with the batch it is in")

    def test_stays_where_it_is_not_the_end(self, tmp_path: Path) -> None:
        model = linear_model(after=[node("Softmax", "linear", "p"), node("Mul", "p p", "logits")])
        network = load(model, tmp_path)
        torch.testing.assert_close(network(images(2)), by_onnx_runtime(model, images(2)), rtol=0, atol=1e-5)
        assert network.remarks == ()


class TestTheBatch:
    def test_must_not_mix_images(self, tmp_path: Path) -> None:
        model = linear_model([node("Softmax", "image", "pixels", axis=0)])
        refused(model, tmp_path, "logits of an image differ by .* with the batch it is in.*evaluation mode")


class TestWeights:
    @pytest.mark.parametrize("kind", [np.float16, np.float64])
    def test_must_be_float32(self, kind: type, tmp_path: Path) -> None:
        number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        nodes = [
            node("Cast", "linear", "wide", to=number),
            node("MatMul", "wide matrix", "product"),
            node("Cast", "product", "logits", to=TensorProto.FLOAT),
        ]
        model = linear_model(after=nodes, arrays={"matrix": np.eye(CLASSES, dtype=kind)})
        refused(model, tmp_path, rf"'matrix' is {np.dtype(kind)}; .*model\.float\(\)")

    def test_stored_in_less_are_taken_where_the_file_widens_them(self, tmp_path: Path) -> None:
        nodes = [node("Cast", "matrix", "wide", to=TensorProto.FLOAT), node("MatMul", "linear wide", "logits")]
        model = linear_model(after=nodes, arrays={"matrix": np.eye(CLASSES, dtype=np.float16)})
        network = load(model, tmp_path)
        torch.testing.assert_close(network(images(2)), by_onnx_runtime(model, images(2)), rtol=0, atol=1e-5)

    def test_stored_sparse_are_refused(self, tmp_path: Path) -> None:
        model = linear_model()
        weight = onnx.numpy_helper.to_array(model.graph.initializer.pop())
        values = onnx.numpy_helper.from_array(weight.reshape(-1), "weight")
        places = onnx.numpy_helper.from_array(np.arange(weight.size), "places")
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, weight.shape))
        refused(model, tmp_path, "'weight' are stored sparse; .*dense")


class TestWhatCannotBeRead:
    @pytest.mark.parametrize(
        ("operator", "inputs"),
        [("QuantizeLinear", "image scale zero"), ("RandomNormalLike", "image"), ("Bernoulli", "image")],
    )
    def test_is_named_with_opset_and_node(self, operator: str, inputs: str, tmp_path: Path) -> None:
        arrays: dict[str, Any] = {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.uint8)}
        before = [node(operator, inputs, "q"), node("Cast", "q", "pixels", to=TensorProto.FLOAT)]
        message = f"operator {operator} of opset 17 in node '{operator} of q'"
        refused(linear_model(before, arrays=arrays), tmp_path, message)

    def test_may_be_there_where_the_logits_do_not_need_it(self, tmp_path: Path) -> None:
        after = [node("Identity", "linear", "logits"), node("RandomNormalLike", "linear", "noise")]
        load(linear_model(after=after, outputs=[value("logits"), value("noise")]), tmp_path, output_name="logits")

    def test_of_another_domain_is_named_with_it(self, tmp_path: Path) -> None:
        model = linear_model([node("Magic", "image", "pixels", domain="com.acme")], domains=["com.acme"])
        refused(model, tmp_path, r"com\.acme.*Magic.* node 'Magic of pixels'")

    def test_includes_quantised_convolutions(self, tmp_path: Path) -> None:
        names = "image scale zero kernel scale zero scale zero"
        arrays: dict[str, Any] = {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.uint8)}
        arrays["kernel"] = np.ones((3, 3, 1, 1), np.uint8)
        nodes = [
            node("QuantizeLinear", "image scale zero", "quantised"),
            node("QLinearConv", names.replace("image", "quantised"), "convolved"),
            node("DequantizeLinear", "convolved scale zero", "pixels"),
        ]
        refused(linear_model(nodes, arrays=arrays), tmp_path, "operator QuantizeLinear of opset 17")


def test_dropout_left_in_training_mode_is_refused(tmp_path: Path) -> None:
    arrays = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    model = linear_model([node("Dropout", "image ratio training", "pixels")], arrays=arrays)
    refused(model, tmp_path, r"Dropout.*evaluation mode \(model\.eval\(\)")


def test_a_file_as_pytorch_writes_it_needs_no_remarks(tmp_path: Path) -> None:
    assert load(exported("plain"), tmp_path).remarks == ()
