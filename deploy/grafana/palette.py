"""Colours that people with any colour vision tell apart, the same for the same thing on every panel."""

GOOD = "#009E73"
WARNING = "#E69F00"
BAD = "#D55E00"
NEUTRAL = "#0072B2"
# Okabe and Ito's colours, which stay distinct with every form of colour blindness; black is grey here, for dark themes.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
_SKY, _VERMILION, _YELLOW, _GREY = "#56B4E9", "#D55E00", "#F0E442", "#999999"

METHODS = {
    "Predict": _BLUE,
    "Explain": _ORANGE,
    "BatchExplain": _GREEN,
    "StreamExplain": _PURPLE,
    "GetClassPathway": _SKY,
    "ListModels": _GREY,
    "GetModel": _YELLOW,
}

SERVICE_ERRORS = {
    "UNAVAILABLE": _VERMILION,
    "INTERNAL": _PURPLE,
    "DEADLINE_EXCEEDED": _ORANGE,
    "RESOURCE_EXHAUSTED": _YELLOW,
    "UNKNOWN": _GREY,
}
"""Codes with which the service fails sound calls: these use up the error budget, as the alerts count it."""

CALLER_ERRORS = {
    "INVALID_ARGUMENT": _BLUE,
    "NOT_FOUND": _SKY,
    "FAILED_PRECONDITION": _GREEN,
    "UNAUTHENTICATED": _PURPLE,
    "PERMISSION_DENIED": _VERMILION,
    "CANCELLED": _GREY,
    "UNIMPLEMENTED": _YELLOW,
}
"""Codes that callers cause; such calls do not count at all."""

SOURCES = {"transferred": _BLUE, "generated": _ORANGE, "neuron_mct": _GREEN, "neuron_intgrad": _PURPLE}
STAGES = {
    "queue": _GREY,
    "decode": _SKY,
    "predict": _BLUE,
    "pathway": _ORANGE,
    "gradient": _GREEN,
    "encode": _PURPLE,
}
STATISTICS = {"sparsity": _BLUE, "class_pathway_iou": _ORANGE, "confidence_drop": _GREEN}
KINDS = {"prediction": _BLUE, "explanation": _ORANGE, "bulk": _GREEN}
REFUSALS = {"QUEUE_FULL": _ORANGE, "DEADLINE_TOO_SHORT": _PURPLE, "TOO_MANY_BULK_CALLS": _GREEN}
QUANTILES = {"90 %": _SKY, "50 %": _BLUE, "10 %": _GREEN}
