"""PromQL of the dashboards: who is meant by the variables, and the few forms that come again and again."""

from grafana.palette import SERVICE_ERRORS

PODS = 'namespace=~"$namespace",pod=~"$pod"'
"""Series of a pod; they have neither model nor version."""

CALLS = f'{PODS},model=~"$model|",version=~"$version|"'
"""Calls, those included that no version answered: a failure must not vanish because a model was chosen."""

ANSWERS = f'{PODS},model=~"$model",version=~"$version"'
"""What a version did."""

EXPLANATIONS = f'{ANSWERS},source=~"$source",class=~"$class"'
"""What a version explained."""

RECORDED = 'namespace=~"$namespace",model=~"$model",version=~"$version",source=~"$source"'
"""The recorded drift, which is taken over all pods."""

INTERVAL = "$__rate_interval"
_FAILED = "|".join(SERVICE_ERRORS)


def rate(metric: str, matchers: str, by: str = "", window: str = INTERVAL) -> str:
    """Ask for the events per second of a counter.

    Args:
        metric: Name of the counter.
        matchers: Which of its series.
        by: Labels that stay, with commas.
        window: Over which time.

    Returns:
        PromQL.
    """
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[{window}]))"


def increase(metric: str, matchers: str, by: str = "", window: str = INTERVAL) -> str:
    """Ask for the events of a counter within a window.

    Args:
        metric: Name of the counter.
        matchers: Which of its series.
        by: Labels that stay, with commas.
        window: Over which time.

    Returns:
        PromQL.
    """
    return f"sum by ({by}) (increase({metric}{{{matchers}}}[{window}]))"


def quantile(share: float, histogram: str, matchers: str, by: str = "", window: str = INTERVAL) -> str:
    """Ask for a quantile of what a histogram observed.

    Args:
        share: Which quantile, between 0 and 1.
        histogram: Name of the histogram, without `_bucket`.
        matchers: Which of its series.
        by: Labels that stay, with commas.
        window: Over which time.

    Returns:
        PromQL.
    """
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', matchers, labels, window)})"


def mean(histogram: str, matchers: str, by: str) -> str:
    """Ask for the mean of what a histogram observed.

    Args:
        histogram: Name of the histogram, without suffix.
        matchers: Which of its series.
        by: Labels that stay, with commas.

    Returns:
        PromQL, without a value where nothing was observed.
    """
    observations = rate(f"{histogram}_count", matchers, by)
    return f"{rate(f'{histogram}_sum', matchers, by)} / ({observations} > 0)"


def failures(window: str) -> str:
    """Ask for the share of the sound calls that the service failed; calls that are the caller's own fault do not count.

    Args:
        window: Over which time.

    Returns:
        PromQL, without a value where nobody called.
    """
    failed = rate("pathlens_requests_total", f'{CALLS},code=~"{_FAILED}"', window=window)
    sound = rate("pathlens_requests_total", f'{CALLS},code=~"OK|{_FAILED}"', window=window)
    return f"({failed} or vector(0)) / ({sound} > 0)"


def drift(window: str) -> str:
    """Ask for recorded drift where enough explanations stand behind it.

    Args:
        window: `6h` or `1h`.

    Returns:
        PromQL, by namespace, model, version, source and statistic.
    """
    return (
        f"pathlens:pathway_drift:ks_{window}{{{RECORDED}}}"
        f" and pathlens:pathway_drift:observations_{window}{{{RECORDED}}} >= 100"
    )


def drift_by_class(window: str) -> str:
    """Ask for the same of the chosen classes alone.

    Args:
        window: `6h` or `1h`.

    Returns:
        PromQL, by namespace, model, version, source, statistic and class.
    """
    chosen = f'{RECORDED},class=~"$class"'
    return (
        f"pathlens:pathway_drift_by_class:ks_{window}{{{chosen}}}"
        f" and pathlens:pathway_drift_by_class:observations_{window}{{{chosen}}} >= 100"
    )


def gateway_process(metric: str) -> str:
    """Ask for a `process_*` metric of the gateways alone, since every other exporter has it, too.

    Args:
        metric: Name of the metric.

    Returns:
        An instant vector in PromQL.
    """
    return f"{metric}{{{PODS}}} and on (namespace, pod, instance) pathlens_build_info{{{PODS}}}"


def gateway_rate(metric: str, window: str = INTERVAL) -> str:
    """Ask the same for a counter, as events per second.

    Args:
        metric: Name of the counter.
        window: Over which time.

    Returns:
        An instant vector in PromQL.
    """
    return f"rate({metric}{{{PODS}}}[{window}]) and on (namespace, pod, instance) pathlens_build_info{{{PODS}}}"


def gpu(metric: str) -> str:
    """Ask for a metric of NVIDIA's DCGM exporter for the GPUs of our pods.

    Prometheus keeps the exporter's own pod in `pod` and moves ours to `exported_pod`, unless it honours the exporter's
    labels. Both forms come out with our pod in `pod`.

    Args:
        metric: Name of the metric.

    Returns:
        An instant vector in PromQL, a series for each GPU.
    """
    pod = f'label_replace({metric}, "pod", "$1", "exported_pod", "(.+)")'
    both = f'label_replace({pod}, "namespace", "$1", "exported_namespace", "(.+)")'
    return f"{both} and on (namespace, pod) pathlens_build_info{{{PODS}}}"
