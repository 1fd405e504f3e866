"""Strategies for everything that crosses the wire."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathlens.description import (
    ClassPathway,
    ClassPathwaySelection,
    ClassPathwayStatistics,
    MaskFigures,
    ModelDescription,
    TapDescription,
    TapFrequency,
    TransferFigures,
)
from pathlens.explanation import (
    STAGES,
    Ablation,
    Explanation,
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Faithfulness,
    Granularity,
    Linearity,
    ModelReference,
    NeuronContribution,
    Output,
    PathwaySource,
    Prediction,
    Reduction,
    ServedModel,
    TapMask,
    Targets,
    Typicality,
)

counts = st.integers(0, 2**32 - 1)
indices = st.integers(-(2**31), 2**31 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
single = st.floats(width=32, allow_nan=False)
double = st.floats(allow_nan=False)
shares = st.none() | st.floats(0, 1)


def tuples(elements: st.SearchStrategy[Any], max_size: int = 4) -> st.SearchStrategy[Any]:
    return st.lists(elements, max_size=max_size).map(tuple)


def arrays(dtype: Any, least: int = 0) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=least, max_dims=4, min_side=0, max_side=4)
    elements = {"allow_nan": False} if np.dtype(dtype).kind == "f" else None
    return hnp.arrays(dtype, shapes, elements=elements)


images: st.SearchStrategy[Any] = st.binary(max_size=20) | arrays(np.uint8) | arrays(np.float32)
references = st.builds(ModelReference, texts, texts)
served_models = st.builds(ServedModel, texts, texts, texts)
options = st.builds(
    ExplanationOptions,
    targets=st.builds(Targets, counts, tuples(indices), tuples(texts)),
    source=st.sampled_from(PathwaySource),
    sparsity=st.none() | double,
    granularity=st.none() | st.sampled_from(Granularity),
    outputs=st.frozensets(st.sampled_from(Output), min_size=1),
    reduction=st.sampled_from(Reduction),
    top_neurons=counts,
    predictions=st.integers(1, 2**32 - 1),
    integration_steps=st.integers(1, 2**32 - 1),
    linearity_radius=st.none() | double,
)
requests = st.builds(ExplanationRequest, images, options)
predictions = st.builds(Prediction, indices, texts, single, single)
masks = st.builds(TapMask, texts, arrays(np.bool_, least=1))
explanations = st.builds(
    Explanation,
    target=predictions,
    source=st.sampled_from(PathwaySource),
    granularity=st.sampled_from(Granularity),
    ablation=st.sampled_from(Ablation),
    sparsity=double,
    class_pathway_iou=st.none() | double,
    pathway=tuples(masks),
    faithfulness=st.none() | st.builds(Faithfulness, single, single, single, st.booleans()),
    map=st.none() | arrays(np.float32),
    heatmap_png=st.binary(max_size=8),
    overlay_png=st.binary(max_size=8),
    top_neurons=tuples(st.builds(NeuronContribution, texts, tuples(st.integers(0, 2**63 - 1)), single)),
    linearity=st.none() | st.builds(Linearity, double, counts, double),
    typicality=st.none() | st.builds(Typicality, shares, shares, shares, counts),
)
# Durations hold whole nanoseconds.
seconds = st.integers(0, 10**15).map(lambda nanoseconds: nanoseconds / 1e9)
results = st.builds(
    ExplanationResult,
    predictions=tuples(predictions),
    explanations=tuples(explanations, max_size=2),
    stage_seconds=st.dictionaries(st.sampled_from(STAGES), seconds),
    model=served_models,
)
figures = st.builds(TransferFigures, counts, counts, shares, shares, shares, shares, shares, shares)
mask_figures = st.builds(MaskFigures, double, figures, figures)
statistics = st.builds(
    ClassPathwayStatistics,
    image_count=counts,
    threshold=double,
    source=st.sampled_from(PathwaySource),
    selection=st.sampled_from(ClassPathwaySelection),
    mean_instance_sparsity=double,
    mean_instance_iou=shares,
    within_class_iou=shares,
    cross_class_iou=shares,
    stored=mask_figures,
    by_frequency=mask_figures,
)
# The stored mask is the class pathway, so they have one sparsity.
class_pathways = statistics.flatmap(
    lambda built: st.builds(
        ClassPathway,
        class_index=indices,
        label=texts,
        granularity=st.sampled_from(Granularity),
        ablation=st.sampled_from(Ablation),
        sparsity=st.just(built.stored.sparsity),
        pathway=tuples(masks),
        statistics=st.just(built),
        frequencies=tuples(st.builds(TapFrequency, texts, arrays(np.float32, least=1))),
        model=served_models,
    )
)
models = st.builds(
    ModelDescription,
    model=served_models,
    classifier_sha256=texts,
    labels=tuples(texts),
    input_shape=st.tuples(*[st.integers(1, 2**40)] * 3),
    taps=tuples(st.builds(TapDescription, texts, texts, tuples(st.integers(1, 2**40)))),
    sources=tuples(st.sampled_from(PathwaySource)),
    granularity=st.sampled_from(Granularity),
    ablation=st.sampled_from(Ablation),
    default_sparsity=double,
    class_pathway_count=counts,
    classes_without_pathway=tuples(indices),
)


def comparable(value: object) -> object:
    """Return a value that compares equal exactly if the objects hold the same, arrays included."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(comparable, value))
    if hasattr(value, "__dataclass_fields__"):
        return type(value), {name: comparable(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
