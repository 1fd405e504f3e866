"""Which rule is for which call."""

from collections.abc import Mapping

from pathlens.classifier.taps import operator_name
from pathlens.slicing.arithmetic import Product, Sum
from pathlens.slicing.convolution import Convolution
from pathlens.slicing.joining import Concatenation
from pathlens.slicing.linear import Linear
from pathlens.slicing.masking import Mask
from pathlens.slicing.pointwise import BatchNorm, Expansion, Identity, Item, Pointwise, Reduction, Spatial
from pathlens.slicing.reshaping import Permutation, Reshape
from pathlens.slicing.rule import Rule, Step
from pathlens.slicing.selecting import Pad, Part
from pathlens.slicing.whole import Whole

_KINDS: tuple[type[Rule], ...] = (
    *(Mask, Convolution, Linear, BatchNorm, Identity, Pointwise, Spatial, Sum, Product, Concatenation),
    *(Reshape, Permutation, Part, Pad, Expansion, Reduction, Item),
)


def _by_operator() -> Mapping[str, list[type[Rule]]]:
    operators = {name for kind in _KINDS for name in kind.operators}
    return {name: [kind for kind in _KINDS if name in kind.operators] for name in operators}


_RULES = _by_operator()


def rule_for(step: Step) -> Rule:
    """Return the first rule that holds for a call; for a call that no image reaches, and for all others, `Whole`."""
    if any(step.channels(node).varies for node in step.dynamic):
        for kind in _RULES.get(operator_name(step.node) or getattr(step.function, "__name__", ""), ()):
            rule = kind.fit(step)
            if rule is not None:
                return rule
    return Whole.fit(step)
