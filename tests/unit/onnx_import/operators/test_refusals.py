import numpy as np
import pytest
from onnx import TensorProto

from onnx_nodes import Single, floats, integers, normal
from pathlens.errors import CaptureError
from pathlens.onnx_import.operators import Node, implementation_of, operator
from pathlens.onnx_import.values import Inputs, Value

IMAGE = normal(2, 6, 4, 4)
DOUBLED = [IMAGE, None, floats(1, 1, 2, 2)]
STATISTICS = [normal(6)] * 4

REFUSED = [
    (Single("BatchNormalization", [IMAGE, *STATISTICS], {"training_mode": 1}, outputs=3), "model.eval"),
    (Single("BatchNormalization", [IMAGE, *STATISTICS], {}, outputs=2), "model.eval"),
    (Single("Dropout", [IMAGE, None, np.array(True)], {}), "model.eval"),
    (Single("MaxPool", [IMAGE], {"kernel_shape": [2, 2]}, outputs=2), "Indices"),
    (Single("LRN", [IMAGE], {"size": 4}), "size=4"),
    (Single("Pad", [IMAGE, integers(1, 0, 0, 0, 0, 0, 0, 0)], {"mode": "edge"}), "'edge'"),
    (Single("Cast", [IMAGE], {"to": TensorProto.FLOAT16}), "float16"),
    (Single("Cast", [IMAGE], {"to": TensorProto.BFLOAT16}), "bfloat16"),
    (Single("CastLike", [IMAGE, np.ones(3, dtype=np.float16)], {}), "float16"),
    (Single("Cast", [IMAGE], {"to": TensorProto.STRING}), "converts to"),
    (Single("Constant", [], {"value_string": "text"}), "value_string"),
    (Single("Resize", DOUBLED, {"coordinate_transformation_mode": "tf_crop_and_resize"}), "tf_crop_and_resize"),
    (Single("Resize", DOUBLED, {"keep_aspect_ratio_policy": "not_larger"}), "keep_aspect_ratio_policy=not_larger"),
    (Single("Resize", DOUBLED, {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}), "asymmetric"),
    (Single("Resize", DOUBLED, {"mode": "linear", "exclude_outside": 1}), "exclude_outside=1"),
    (Single("Resize", DOUBLED, {"mode": "linear", "antialias": 1}), "antialias=1"),
    (Single("Resize", DOUBLED, {"mode": "cubic", "cubic_coeff_a": -0.5}), "cubic_coeff_a=-0.5"),
    (Single("Resize", DOUBLED, {"nearest_mode": "ceil"}), "nearest_mode=ceil"),
    (Single("Resize", [IMAGE, None, None, integers(2, 6, 3, 3)], {}), "nearest_mode=round_prefer_floor"),
    (Single("Resize", [IMAGE, None, floats(1, 2, 2, 2)], {}), "scales"),
    (Single("Resize", [IMAGE, None, None, integers(2, 3, 8, 8)], {}), "sizes"),
    (
        Single(
            "Resize",
            [IMAGE, None, floats(1, 1, 0.6, 1)],
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        ),
        "align_corners",
    ),
    (
        Single(
            "Resize",
            [IMAGE, None, None, integers(2, 6, 1, 4)],
            {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        ),
        "pytorch_half_pixel",
    ),
]


@pytest.mark.parametrize(("single", "words"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_form_that_cannot_be_read_is_refused_by_node_and_attribute(single: Single, words: str) -> None:
    with pytest.raises(CaptureError) as failure:
        single.by_pathlens(19)
    assert f"The operator {single.operator} of opset 19 in node 'the node' " in failure.value.message
    assert words in failure.value.message


@pytest.mark.parametrize(("name", "domain"), [("NonMaxSuppression", ""), ("Relu", "com.example")])
def test_an_operator_that_cannot_be_read_is_named_with_opset_and_node(name: str, domain: str) -> None:
    with pytest.raises(CaptureError, match=rf"operator .*{name} of opset 17 in node 'last', .*Replace it"):
        implementation_of(Node("last", name, domain, 17, (), (), {}))


def test_a_missing_input_is_named() -> None:
    with pytest.raises(CaptureError, match="'the node' input 1 is left out"):
        Single("Conv", [IMAGE], {}).by_pathlens(13)


def test_an_operator_is_registered_once() -> None:
    def implementation(_node: Node, _inputs: Inputs) -> Value:
        return IMAGE

    with pytest.raises(ValueError, match="Relu is registered twice"):
        operator("Relu")(implementation)
