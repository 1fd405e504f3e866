"""What a graph must equal is what the explainer answers."""

import numpy as np
import pytest
import torch

from exported_tiny import BOTH, subject
from pathlens.errors import FailedPreconditionError
from pathlens.explanation import Ablation, ExplanationOptions, Granularity, Output, PathwaySource, Reduction
from pathlens.onnx_export.torch_explanation import explain_with_torch
from tiny_bundle import WITHOUT_PATHWAY, tensor, tiny_explainer

IMAGES = 12


@pytest.mark.parametrize("ablation", Ablation)
@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("source", BOTH)
def test_it_is_the_answer_of_the_explainer(source: PathwaySource, granularity: Granularity, ablation: Ablation) -> None:
    inputs = [tensor(seed) for seed in range(IMAGES)]
    outputs = explain_with_torch(subject(granularity, ablation), torch.from_numpy(np.stack(inputs)), BOTH).outputs
    options = ExplanationOptions(
        source=source, outputs=frozenset({Output.PATHWAY, Output.MAP, Output.FAITHFULNESS}), reduction=Reduction.NONE
    )
    explainer, compared = tiny_explainer(granularity, ablation), 0
    for row, image in enumerate(inputs):
        top_class = int(outputs["top_class"][row])
        if top_class == WITHOUT_PATHWAY and source is PathwaySource.TRANSFERRED:
            continue
        (result,) = explainer.explain([image], options)
        (explanation,) = result.explanations
        assert explanation.target.class_index == top_class
        assert explanation.target.logit == pytest.approx(float(outputs["logits"][row, top_class]), rel=1e-5)
        kept = np.concatenate([mask.mask.ravel() for mask in explanation.pathway])
        np.testing.assert_array_equal(outputs[f"{source.value}_mask"][row].numpy(), kept)
        confidence = outputs[f"{source.value}_logits"][row].softmax(0)[top_class]
        assert explanation.faithfulness is not None
        assert explanation.faithfulness.pathway_confidence == pytest.approx(float(confidence), abs=1e-5)
        assert explanation.map is not None
        np.testing.assert_allclose(outputs[f"{source.value}_map"][row].numpy(), explanation.map, rtol=1e-4, atol=1e-5)
        compared += 1
    assert compared >= IMAGES // 2


def test_a_class_without_a_pathway_has_an_empty_one_and_is_said_to_have_none() -> None:
    of = subject(ablation=Ablation.OPTIMAL)
    inputs = torch.from_numpy(np.stack([tensor(seed) for seed in range(300)]))
    outputs = explain_with_torch(of, inputs, BOTH).outputs
    without = outputs["top_class"] == WITHOUT_PATHWAY
    assert 0 < int(without.sum()) < len(inputs)
    assert torch.equal(outputs["transferred_available"], ~without)
    assert not outputs["transferred_mask"][without].any()
    with pytest.raises(FailedPreconditionError, match="has no stored pathway"):
        tiny_explainer(ablation=Ablation.OPTIMAL).explain([inputs[without][0].numpy()])
