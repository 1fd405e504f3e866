"""Nodes of forms that ONNX publishes no test case for: older opsets, and what exporters of classifiers write."""

import numpy as np
from onnx import TensorProto

from onnx_nodes import Single, floats, integers, normal, number

IMAGE = normal(2, 6, 5, 4)
POSITIVE = np.abs(IMAGE) + np.float32(0.1)
WHOLE = np.array([[7, -7, 6, -3], [0, 5, -5, 9]], dtype=np.int64)
STATISTICS = [np.abs(normal(6, seed=seed)) + np.float32(0.5) for seed in range(1, 5)]
REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)

SINGLE_NODES = (
    # Axes as an attribute and as an input; a file is valid with one of them, depending on the opset.
    *(Single(name, [POSITIVE], {"axes": [2, -1], "keepdims": 0}) for name in REDUCTIONS if name != "ReduceSum"),
    *(Single(name, [POSITIVE, integers(2, -1)], {"keepdims": 0}) for name in REDUCTIONS),
    *(Single(name, [POSITIVE], {"noop_with_empty_axes": 1}) for name in REDUCTIONS),
    Single("Split", [IMAGE], {"axis": 1}, outputs=3, opsets=range(13, 18)),
    Single("Split", [IMAGE], {"axis": 2, "num_outputs": 3}, outputs=3),
    Single("Split", [IMAGE, integers(4, 2)], {"axis": 1}, outputs=2),
    Single("GroupNormalization", [IMAGE, floats(1, 2, 3), floats(0, 1, -1)], {"num_groups": 3}, opsets=range(18, 21)),
    Single("GroupNormalization", [IMAGE, STATISTICS[0], STATISTICS[1]], {"num_groups": 3}, opsets=range(21, 22)),
    Single("BatchNormalization", [IMAGE, *STATISTICS], {"epsilon": 0.01}),
    Single("MaxPool", [IMAGE], {"kernel_shape": [2, 3], "auto_pad": "SAME_LOWER"}),
    Single("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1], "ceil_mode": 1, "strides": [2, 2]}),
    Single("LpPool", [IMAGE], {"kernel_shape": [2, 2], "p": 3}),
    Single("LayerNormalization", [IMAGE, normal(5, 4), normal(4)], {"axis": 2}),
    Single("LayerNormalization", [IMAGE, normal(4)], {"epsilon": 0.1}, outputs=3),
    Single("InstanceNormalization", [IMAGE, STATISTICS[0], STATISTICS[1]], {}),
    *(Single("LRN", [IMAGE], {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5}) for size in (1, 3, 5)),
    Single("Dropout", [IMAGE], {}),
    Single("Dropout", [IMAGE, number(0.5), np.array(False)], {}),
    Single("Pad", [IMAGE, integers(0, 0, 1, 2, 0, 0, 0, 1)], {}),
    Single("Pad", [IMAGE, integers(0, 1, -1, 2, 1, 0, 0, 1), number(3)], {}),
    Single("Pad", [IMAGE, integers(1, 2, 0, 1), None, integers(-1, 2)], {"mode": "edge"}),
    Single("Pad", [IMAGE, integers(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "reflect"}),
    Single("Pad", [IMAGE, integers(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "wrap"}),
    Single("Clip", [IMAGE, number(-0.5), number(0.5)], {}),
    Single("Clip", [IMAGE, number(0)], {}),
    Single("Clip", [IMAGE, None, number(0.3)], {}),
    Single("Clip", [IMAGE, number(0), number(float(np.finfo(np.float32).max))], {}),
    Single("PRelu", [IMAGE, floats(0.3)], {}),
    Single("PRelu", [IMAGE, normal(6, 1, 1)], {}),
    Single("PRelu", [IMAGE, normal(4)], {}),
    Single("PRelu", [normal(2, 6), normal(6)], {}),
    Single("HardSigmoid", [IMAGE], {"alpha": 1 / 6, "beta": 0.5}),
    Single("HardSigmoid", [IMAGE], {"alpha": 0.3}),
    Single("Selu", [IMAGE], {"alpha": 1.2, "gamma": 2.0}),
    Single("Selu", [IMAGE], {}),
    Single("Gemm", [normal(3, 5), normal(4, 5), normal(4)], {"transB": 1}),
    Single("Gemm", [normal(5, 3), normal(5, 4), normal(3, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Single("Gemm", [normal(3, 5), normal(5, 4), normal(1, 4)], {"beta": 0.0}),
    Single("Gemm", [normal(3, 5), normal(5, 4)], {}),
    Single("Einsum", [normal(2, 3, 4), normal(2, 4, 5)], {"equation": "bij, bjk -> bik"}),
    Single("GlobalLpPool", [IMAGE], {}),
    Single("GlobalLpPool", [IMAGE], {"p": 1}),
    Single("Cast", [IMAGE * 3], {"to": TensorProto.INT64}),
    Single("Cast", [WHOLE], {"to": TensorProto.FLOAT}),
    Single("CastLike", [IMAGE * 3, integers(1)], {}),
    Single("CastLike", [WHOLE, normal(3, 3)], {}),
    Single("Div", [WHOLE, integers(2, -2, 4, 5)], {}),
    Single("Div", [WHOLE, np.array(-2, dtype=np.int64)], {}),
    Single("Mod", [WHOLE, integers(2, -2, 4, 5)], {}),
    Single("Mod", [WHOLE, integers(2, -2, 4, 5)], {"fmod": 1}),
    Single("Pow", [POSITIVE, number(1.5)], {}),
    Single("Pow", [IMAGE, integers(2)], {}),
    Single("Max", [IMAGE, number(0)], {}),
    Single("Min", [IMAGE, normal(4), number(0.2)], {}),
    Single("Mean", [IMAGE, normal(4), number(0.2)], {}),
    Single("Sum", [IMAGE, normal(4), number(0.2)], {}),
    Single("Mul", [normal(3), normal(1, 1, 1)], {}),
    Single("ArgMax", [np.round(IMAGE)], {"axis": 1, "select_last_index": 1, "keepdims": 0}),
    Single("ArgMin", [np.round(IMAGE)], {"axis": -1}),
    Single("Gather", [IMAGE, np.array([[0, -1], [2, 1]], dtype=np.int64)], {"axis": 1}),
    Single("Gather", [IMAGE, np.array(-2, dtype=np.int64)], {"axis": 2}),
    Single("GatherElements", [IMAGE[:, :1], np.full((2, 1, 1, 4), -2, dtype=np.int64)], {"axis": 2}),
    Single("Slice", [IMAGE, integers(-2, 9), integers(-9, 0), integers(2, 3), integers(-2, -1)], {}),
    Single("Slice", [IMAGE, integers(1), integers(np.iinfo(np.int64).max), integers(1), integers(2)], {}),
    Single("Reshape", [IMAGE, integers(0, -1, 2)], {}),
    Single("Flatten", [IMAGE], {"axis": 0}),
    Single("Flatten", [IMAGE], {"axis": -1}),
    Single("Squeeze", [normal(2, 1, 3, 1)], {}),
    Single("Squeeze", [normal(2, 1, 3, 1), integers(-1)], {}),
    Single("Unsqueeze", [IMAGE, integers(-1, 1)], {}),
    Single("Transpose", [IMAGE], {}),
    Single("Expand", [normal(2, 1, 4), integers(5, 1, 3, 1)], {}),
    Single("Tile", [IMAGE, integers(1, 2, 1, 3)], {}),
    Single("Trilu", [IMAGE, np.array(-1, dtype=np.int64)], {"upper": 0}),
    Single("Shape", [IMAGE], {}),
    Single("Shape", [IMAGE], {"start": 1, "end": -1}),
    Single("Size", [IMAGE], {}),
    Single("DepthToSpace", [normal(2, 8, 3, 2)], {"blocksize": 2, "mode": "CRD"}),
    Single("SpaceToDepth", [normal(2, 3, 4, 6)], {"blocksize": 2}),
    # Resizing as PyTorch's exporters and TensorFlow's converter write it.
    *(
        Single("Resize", [normal(1, 2, 5, 6), floats(), scales, sizes], {"mode": mode, **attributes})
        for mode, attributes in (
            ("nearest", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
            ("nearest", {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}),
            ("nearest", {}),
            ("linear", {}),
            ("linear", {"coordinate_transformation_mode": "pytorch_half_pixel"}),
            ("linear", {"coordinate_transformation_mode": "align_corners"}),
            ("cubic", {"cubic_coeff_a": -0.75}),
        )
        for scales, sizes in ((floats(1, 1, 2, 3), None), (None, integers(1, 2, 15, 12)))
    ),
    Single("Resize", [normal(1, 2, 5, 6), None, floats(2, 1), None], {"mode": "linear", "axes": [3, 2]}),
    Single("Resize", [normal(1, 2, 5, 6), None, floats(1, 1, 0.6, 0.5)], {"mode": "linear"}),
    Single("Resize", [normal(1, 2, 5, 6), None, floats(1, 1, 0.6, 0.5)], {"mode": "cubic"}),
    Single("Resize", [normal(1, 2, 5), None, floats(1, 1, 2), None], {"mode": "linear"}),
    Single("Resize", [normal(1, 2, 5, 6), None, None, integers(1, 2, 5, 6)], {"mode": "cubic"}),
)
