"""The dashboard of whoever is on call: whether predictions and explanations come, in time and without errors."""

from grafana_foundation_sdk.models import common, dashboard

from grafana.alerts import firing_alerts
from grafana.frame import Group, framed, single_choice, source_variable
from grafana.overview import overview
from grafana.palette import (
    BAD,
    CALLER_ERRORS,
    GOOD,
    KINDS,
    METHODS,
    NEUTRAL,
    REFUSALS,
    SERVICE_ERRORS,
    SOURCES,
    STAGES,
    WARNING,
)
from grafana.panels import coloured, described, events, fixed, heat, limits, lines, logarithmic, stacked, with_limits
from grafana.queries import ANSWERS, CALLS, PODS, failures, increase, mean, quantile, rate
from grafana.targets import over_time

_DURATION = "pathlens_request_duration_seconds"
_REQUESTS = "pathlens_requests_total"
_LOOK_AT_STAGES = "see which stage grew (*Where the time goes*) and whether calls wait (*Admission*)."


def service() -> dashboard.Dashboard:
    """Build the dashboard.

    Returns:
        The dashboard.
    """
    methods = f"label_values({_DURATION}_count{{{PODS}}}, method)"
    return framed(
        "service",
        "pathlens / Service",
        "Whether predictions and explanations come, in time and without errors. Read the first line, then what fires.",
        "now-3h",
        [single_choice("method", "Method (heatmap)", methods, "Explain"), source_variable()],
        [
            Group("Now", overview()),
            _trouble(),
            _traffic(),
            _latency(),
            _where_time_goes(),
            _admission(),
            _models(),
        ],
    )


def _trouble() -> Group:
    burn = lines(
        "Error budget burn",
        described(
            "How many times faster than allowed the error budget was spent in the hour and in the six hours before "
            "each "
            "moment.",
            "below 1.",
            "the dashed lines are what pages: 14.4 in an hour, 6 in six hours. DEADLINE_EXCEEDED counts here, and "
            "pages only when half of the calls fail.",
            "PathlensErrorBudgetBurn",
        ),
        "none",
        over_time(f"{failures('1h')} / 0.001", "last hour"),
        over_time(f"{failures('6h')} / 0.001", "last six hours"),
    )
    coloured(burn, {"last hour": BAD, "last six hours": WARNING})
    with_limits(burn, limits((None, "transparent"), (6, WARNING), (14.4, BAD)))
    return Group("What is wrong", [firing_alerts(), burn.span(12).height(7).axis_soft_max(2)])


def _traffic() -> Group:
    calls = stacked(
        "Calls by method",
        described(
            "Finished calls per second.", "what the applications usually send.", "a gap: ask whether they reach us."
        ),
        "reqps",
        over_time(rate(_REQUESTS, CALLS, "method"), "{{method}}"),
    )
    ours = stacked(
        "Errors of the service, by code",
        described(
            "Sound calls that the service failed, per second.",
            "nothing.",
            "UNAVAILABLE: workers or TorchServe restart, or no pod is ready. RESOURCE_EXHAUSTED: more calls than "
            "places, "
            "or GPU memory. DEADLINE_EXCEEDED: too slow for the callers. INTERNAL, UNKNOWN: read the log.",
            "PathlensErrorBudgetBurn",
        ),
        "reqps",
        over_time(rate(_REQUESTS, f'{CALLS},code=~"{"|".join(SERVICE_ERRORS)}"', "code"), "{{code}}"),
    )
    theirs = stacked(
        "Errors of callers, by code",
        described(
            "Calls that could not be answered through no fault of the service, per second. They do not count for the "
            "objective.",
            "few.",
            "find the caller by the request ids in the log, and tell them. CANCELLED: callers lose patience, look at "
            "latency.",
        ),
        "reqps",
        over_time(rate(_REQUESTS, f'{CALLS},code!~"OK|{"|".join(SERVICE_ERRORS)}"', "code"), "{{code}}"),
    )
    return Group(
        "Traffic and errors",
        [coloured(calls, METHODS), coloured(ours, SERVICE_ERRORS), coloured(theirs, CALLER_ERRORS)],
    )


def _latency() -> Group:
    slow = (
        "Predict within 250 ms and Explain within 1 s at the 99th percentile; streams and batches take as long as they "
        "are long."
    )
    panels = []
    for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
        panel = lines(
            f"{name} by method",
            described(
                f"{share * 100:.0f} % of the calls took at most this long.",
                slow,
                _LOOK_AT_STAGES,
                "PathlensLatencyBudgetBurn",
            ),
            "s",
            over_time(quantile(share, _DURATION, CALLS, "method"), "{{method}}"),
        )
        panels.append(logarithmic(coloured(panel, METHODS)))
    for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
        panel = lines(
            f"{name} of Explain by source",
            described(
                f"{share * 100:.0f} % of the explanations with pathways from this source took at most this long.",
                "transferred is fastest; neuron_intgrad takes a multiple of it, with the steps that callers ask for.",
                _LOOK_AT_STAGES,
                "PathlensLatencyBudgetBurn",
            ),
            "s",
            over_time(quantile(share, _DURATION, f'{ANSWERS},source!=""', "source"), "{{source}}"),
        )
        panels.append(logarithmic(coloured(panel, SOURCES)))
    for panel in (panels[2], panels[5]):
        with_limits(panel, limits((None, "transparent"), (0.25, WARNING), (1, BAD)))
    shape = "one band. Two bands are two kinds of calls."
    by_method = heat(
        "Durations of $method",
        described("How many calls of the chosen method took how long, per second.", shape, _LOOK_AT_STAGES),
        "s",
        rate(f"{_DURATION}_bucket", f'{CALLS},method="$method"', "le"),
    )
    by_source = heat(
        "Durations of Explain, source $source",
        described("How many explanations of the chosen sources took how long, per second.", shape, _LOOK_AT_STAGES),
        "s",
        rate(f"{_DURATION}_bucket", f'{ANSWERS},source=~"$source"', "le"),
    )
    return Group("Latency", [*panels, by_method.span(12), by_source.span(12)])


def _where_time_goes() -> Group:
    stages = stacked(
        "Mean time by stage",
        described(
            "Mean seconds of each stage, on top of each other. Images that are computed together count once.",
            "predict, pathway and gradient make up most of it, in the same proportions all day.",
            "queue: too few workers or a slow GPU. decode: large pictures. The others: the model or its device.",
            "PathlensLatencyBudgetBurn",
        ),
        "s",
        over_time(mean("pathlens_stage_duration_seconds", ANSWERS, "stage"), "{{stage}}"),
    )
    upstream = lines(
        "At TorchServe, against the limit",
        described(
            "Requests that TorchServe has not answered, and dashed the most that may be there, each summed over pods. "
            "One request may hold several calls that have waited together.",
            "below the limit; touching it for moments.",
            "at the limit calls wait in the gateway: add pods, or workers where the GPU idles.",
            "PathlensQueueing",
        ),
        "short",
        over_time(f'sum by (model) (pathlens_upstream_inflight{{{PODS},model=~"$model"}})', "{{model}}"),
        over_time(f'sum by (model) (pathlens_upstream_inflight_limit{{{PODS},model=~"$model"}})', "{{model}}: limit"),
    )
    dashed = dashboard.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
    upstream.override_by_regexp(": limit$", [dashed, fixed(BAD)])
    inflight = lines(
        "Calls in progress",
        described(
            "Calls that the gateways have received and not answered. By namespace and pod only.",
            "follows the calls per second.",
            "growing without end: TorchServe does not answer, look at its restarts and canaries.",
        ),
        "short",
        over_time(f"sum by (method) (pathlens_inflight{{{PODS}}})", "{{method}}"),
    )
    return Group("Where the time goes", [coloured(stages, STAGES), upstream, coloured(inflight, METHODS)])


def _admission() -> Group:
    waiting = stacked(
        "Waiting in the gateway",
        described(
            "Calls that wait for a place at TorchServe, by line. By namespace and pod only.",
            "near 0.",
            "more calls than the pods can compute: add pods.",
            "PathlensQueueing",
        ),
        "short",
        over_time(f"sum by (kind) (pathlens_queued{{{PODS}}})", "{{kind}}"),
    )
    refused = stacked(
        "Refused at once, by reason",
        described(
            "Calls that admission refused, per second. By namespace and pod only.",
            "nothing.",
            "QUEUE_FULL, TOO_MANY_BULK_CALLS: add pods. DEADLINE_TOO_SHORT: callers allow less time than an answer "
            "takes.",
            "PathlensRefusing",
        ),
        "reqps",
        over_time(rate("pathlens_refused_total", PODS, "reason"), "{{reason}}"),
    )
    abandoned = lines(
        "Abandoned by their callers",
        described(
            "Calls whose caller left while they waited in the gateway, or while TorchServe computed, per second. By "
            "namespace and pod only.",
            "few.",
            "callers lose patience or have short deadlines: look at the latency.",
        ),
        "reqps",
        over_time(rate("pathlens_queue_abandoned_total", PODS, "kind"), "{{kind}}"),
        over_time(rate("pathlens_upstream_abandoned_total", PODS), "at TorchServe"),
    )
    coloured(abandoned, {**KINDS, "at TorchServe": BAD})
    return Group("Admission", [coloured(waiting, KINDS), coloured(refused, REFUSALS), abandoned])


def _models() -> Group:
    canaries = events(
        "Canaries",
        described(
            "Predictions of a grey picture with which each gateway watches each version.",
            "answered at a steady pace, none failed.",
            "a version that fails its canaries answers nobody: see the log of its workers.",
            "PathlensCanaryFailures",
        ),
        over_time(
            increase("pathlens_canaries_total", ANSWERS, "model, version, result"), "{{model}} {{version}}: {{result}}"
        ),
    )
    canaries.override_by_regexp(": failed$", [fixed(BAD)]).override_by_regexp(": answered$", [fixed(GOOD)])
    restarts = events(
        "Restarts",
        described(
            "Attempts to start TorchServe again, by reason, and workers that TorchServe replaced. By namespace and "
            "pod only.",
            "nothing.",
            "read the log before the restart; deaf: it left canaries unanswered; memory is on the dashboard Resources.",
            "PathlensTorchServeRestarts",
            "PathlensWorkerRestarts",
        ),
        over_time(increase("pathlens_torchserve_restarts_total", PODS, "reason"), "TorchServe: {{reason}}"),
        over_time(increase("pathlens_worker_restarts_total", PODS), "worker"),
    )
    coloured(restarts, {"TorchServe: ended": BAD, "TorchServe: deaf": KINDS["explanation"], "worker": NEUTRAL})
    versions = lines(
        "Pods that serve a version",
        described(
            "How many pods serve each version.",
            "one line for each version, as high as there are pods; two lines cross during a rollout.",
            "a line below the others: those pods refused the archive, see *Model changes*.",
            "PathlensModelRefused",
        ),
        "none",
        over_time(f"count by (model, version) (pathlens_model_info{{{ANSWERS}}})", "{{model}} {{version}}"),
    )
    return Group(
        "Models", [canaries, restarts, versions.decimals(0).line_interpolation(common.LineInterpolation.STEP_AFTER)]
    )
