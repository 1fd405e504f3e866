"""The dashboard of what the service uses: processors, memory, GPUs, files and restarts."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models import dashboard

from grafana.frame import Group, framed
from grafana.palette import BAD, GOOD, NEUTRAL, STAGES, WARNING
from grafana.panels import coloured, described, events, limits, lines, stacked, stat
from grafana.queries import ANSWERS, PODS, gateway_process, gateway_rate, gpu, increase, rate
from grafana.targets import now, over_time

_CPU = "pathlens_torchserve_cpu_seconds_total"
_MEMORY = "pathlens_torchserve_resident_memory_bytes"
_NEUTRAL = limits((None, NEUTRAL))
_FULL = limits((None, GOOD), (0.85, WARNING), (0.95, BAD))
_PROCESSES = {
    "gateway": "The gateway, which receives, checks and forwards calls.",
    "jvm": "TorchServe's Java process, which queues calls for the workers.",
    "worker": "The Python processes that hold and run the models.",
}


def resources() -> dashboard.Dashboard:
    """Build the dashboard.

    Returns:
        The dashboard.
    """
    return framed(
        "resources",
        "pathlens / Resources",
        "What gateways, TorchServe, workers and GPUs use. All panels but the last show pods, whatever model is chosen.",
        "now-6h",
        [],
        [
            Group("Now", _overview()),
            Group("Processors", [_processors(process) for process in _PROCESSES]),
            Group("Memory", [_memory(process) for process in _PROCESSES]),
            Group("Processes and restarts", _restarts()),
            Group("GPUs (DCGM exporter)", _gpus()),
            Group("Files and computing time", _others()),
        ],
    )


def _overview() -> Sequence[Stat]:
    usual = "the usual value of this hour."
    workers = f'sum(pathlens_torchserve_processes{{{PODS},process="worker"}})'
    restarts = increase("pathlens_torchserve_restarts_total", PODS, window="24h")
    replaced = increase("pathlens_worker_restarts_total", PODS, window="24h")
    expiry = f"min(pathlens_certificate_expiry_timestamp_seconds{{{PODS}}}) - time()"
    memory = f"(sum({gateway_process('process_resident_memory_bytes')}) or vector(0)) + sum({_MEMORY}{{{PODS}}})"
    cores = f"(sum({gateway_rate('process_cpu_seconds_total', '5m')}) or vector(0)) + {rate(_CPU, PODS, window='5m')}"
    used, free = gpu("DCGM_FI_DEV_FB_USED"), gpu("DCGM_FI_DEV_FB_FREE")
    files = f"max(({gateway_process('process_open_fds')}) / ({gateway_process('process_max_fds')}))"
    return [
        stat(
            "Cores (5 min)",
            described("Processor cores that all processes keep busy.", usual, "see which process below."),
            "none",
            _NEUTRAL,
            now(cores),
        ).decimals(1),
        stat(
            "Memory",
            described(
                "Resident memory of all processes. Pages that workers share count for each.", usual, "see below."
            ),
            "bytes",
            _NEUTRAL,
            now(memory),
        ).decimals(1),
        stat(
            "Workers",
            described(
                "Processes that hold and run models.",
                "as many as pods, versions and workers of each version make together.",
                "fewer: workers are being started again; see *Restarts*.",
                "PathlensTorchServeRestarts",
            ),
            "none",
            limits((None, BAD), (1, GOOD)),
            now(f"{workers} or vector(0)"),
        ),
        stat(
            "Restarts (24 h)",
            described(
                "Restarts of TorchServe, and workers that it replaced. Those of a container that ended do not count.",
                "0.",
                "see below when, and the log why.",
                "PathlensTorchServeRestarts",
                "PathlensContainerRestarts",
            ),
            "none",
            limits((None, GOOD), (1, WARNING), (5, BAD)),
            now(f"({restarts} or vector(0)) + ({replaced} or vector(0))"),
        ).decimals(0),
        stat(
            "GPU busy, mean",
            described(
                "Mean share of time in which our GPUs ran something.", usual, "near 100 % with calls waiting: add pods."
            ),
            "percent",
            _NEUTRAL,
            now(f"avg({gpu('DCGM_FI_DEV_GPU_UTIL')})"),
        )
        .decimals(0)
        .no_value("no GPU"),
        stat(
            "GPU memory, fullest",
            described(
                "Share of the memory in use on the fullest of our GPUs.",
                "below 85 %; loading a version beside the old one needs room for both.",
                "calls end in RESOURCE_EXHAUSTED (OUT_OF_MEMORY): fewer workers, or smaller batches.",
            ),
            "percentunit",
            _FULL,
            now(f"max(({used}) / (({used}) + ({free})))"),
        )
        .decimals(0)
        .no_value("no GPU"),
        stat(
            "Open files, most",
            described("Share of the file descriptors in use in the fullest gateway.", "below 85 %.", "see below."),
            "percentunit",
            _FULL,
            now(files),
        ).decimals(1),
        stat(
            "Certificate ends in",
            described(
                "Time until the first certificate of a gateway is no longer valid.",
                "more than two weeks.",
                "renew it; the gateway reads it anew without a restart.",
                "PathlensCertificateExpires",
            ),
            "s",
            limits((None, BAD), (2 * 86400, WARNING), (14 * 86400, GOOD)),
            now(expiry),
        )
        .decimals(0)
        .no_value("no TLS"),
    ]


def _processors(process: str) -> Timeseries:
    expression = f"sum by (pod) ({gateway_rate('process_cpu_seconds_total')})"
    if process != "gateway":
        expression = rate(_CPU, f'{PODS},process="{process}"', "pod")
    normal = {
        "gateway": "below one core, since it is one Python process: at one core it is the bottleneck, add pods.",
        "jvm": "well below one core.",
        "worker": "with a GPU about one core a worker; without, as many as it may have.",
    }[process]
    return lines(
        f"Cores: {process}",
        described(f"{_PROCESSES[process]} Cores kept busy, by pod.", normal, "compare with the calls per second."),
        "none",
        over_time(expression, "{{pod}}"),
    ).decimals(2)


def _memory(process: str) -> Timeseries:
    expression = f"sum by (pod) ({gateway_process('process_resident_memory_bytes')})"
    if process != "gateway":
        expression = f'sum by (pod) ({_MEMORY}{{{PODS},process="{process}"}})'
    return lines(
        f"Memory: {process}",
        described(
            f"{_PROCESSES[process]} Resident memory, by pod.",
            "level after the first hour; workers double for as long as a new version is loaded beside the old one.",
            "a line that climbs for hours is a leak: note its slope, restart the pod before it meets its limit.",
            "PathlensMemoryGrowth",
        ),
        "bytes",
        over_time(expression, "{{pod}}"),
    )


def _restarts() -> Sequence[Timeseries]:
    torchserve = events(
        "TorchServe restarts",
        described(
            "Attempts to start TorchServe again. ended: by itself. deaf: it left its canaries unanswered. "
            "start_failed: the "
            "attempt before failed.",
            "nothing.",
            "after five in a row the pod is restarted. Read the log before the restart, and look at its memory above.",
            "PathlensTorchServeRestarts",
        ),
        over_time(increase("pathlens_torchserve_restarts_total", PODS, "pod, reason"), "{{pod}}: {{reason}}"),
    )
    workers = events(
        "Worker restarts",
        described(
            "Workers that TorchServe replaced.",
            "nothing.",
            "read the log: out of memory, or a crash.",
            "PathlensWorkerRestarts",
        ),
        over_time(increase("pathlens_worker_restarts_total", PODS, "pod"), "{{pod}}"),
    )
    processes = lines(
        "Processes of TorchServe",
        described(
            "How many processes run, by pod.",
            "one jvm; as many workers as versions have together.",
            "no jvm: TorchServe is being started.",
        ),
        "none",
        over_time(f"sum by (pod, process) (pathlens_torchserve_processes{{{PODS}}})", "{{pod}}: {{process}}"),
    )
    return [torchserve, workers, processes.decimals(0)]


def _gpus() -> Sequence[Timeseries]:
    legend = "{{pod}}: GPU {{gpu}}"
    ours = "Only GPUs of our pods. Empty without DCGM exporter."
    calls = rate("pathlens_requests_total", f'{PODS},code="OK"')
    busy = lines(
        "GPU busy",
        described(
            f"Share of time in which a GPU ran something. {ours} GPUs cut by MIG do not tell it.",
            "follows the calls.",
            "near 100 % with calls waiting: add pods. Low with calls waiting: look at decode and at the gateway's "
            "core.",
        ),
        "percent",
        over_time(gpu("DCGM_FI_DEV_GPU_UTIL"), legend),
    )
    memory = lines(
        "GPU memory in use",
        described(
            f"Memory in use. {ours}",
            "level; two steps up and one down when a version is replaced.",
            "a climb without new versions is a leak, or other tenants of the GPU.",
        ),
        "mbytes",
        over_time(gpu("DCGM_FI_DEV_FB_USED"), legend),
    )
    multiprocessors = lines(
        "Multiprocessors active",
        described(
            f"Mean share of the GPU's multiprocessors with work. {ours} Has to be enabled in the exporter's list of "
            f"fields.",
            "far below *GPU busy*: small batches fill a part of the GPU.",
            "low while calls wait: allow larger batches.",
        ),
        "percentunit",
        over_time(gpu("DCGM_FI_PROF_SM_ACTIVE"), legend),
    )
    temperature = lines(
        "GPU temperature",
        described(
            f"Temperature of the chip. {ours}",
            "below about 85 °C.",
            "hotter GPUs slow themselves down: tell who runs the node.",
        ),
        "celsius",
        over_time(gpu("DCGM_FI_DEV_GPU_TEMP"), legend),
    )
    power = lines(
        "GPU power",
        described(
            f"Power drawn. {ours}", "follows *GPU busy*.", "at the card's limit while slow: the GPU is throttled."
        ),
        "watt",
        over_time(gpu("DCGM_FI_DEV_POWER_USAGE"), legend),
    )
    seconds = lines(
        "GPU seconds per answered call",
        described(
            f"Busy GPU time, divided by the calls that were answered: what a call costs. {ours}",
            "steady.",
            "a step up: another model, other sources, or more steps of integration are asked for.",
        ),
        "s",
        over_time(f"sum({gpu('DCGM_FI_DEV_GPU_UTIL')}) / 100 / ({calls} > 0)", "GPU seconds"),
    )
    return [busy.max(100), memory, multiprocessors.max(1), temperature, power, seconds.decimals(3)]


def _others() -> Sequence[Timeseries]:
    files = lines(
        "Open files of the gateway",
        described(
            "File descriptors, by pod; dashed the most that the system allows.",
            "about one for each connection.",
            "a climb without end: callers open connections and keep them.",
        ),
        "short",
        over_time(gateway_process("process_open_fds"), "{{pod}}"),
        over_time(f"min({gateway_process('process_max_fds')})", "limit"),
    )
    dashed = dashboard.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
    files.override_by_name("limit", [dashed])
    stages = stacked(
        "Computing time by stage",
        described(
            "Seconds that the handlers spend in each stage, per second, for the chosen models and versions.",
            "below the number of workers.",
            "at the number of workers they are always busy: add workers or pods.",
        ),
        "none",
        over_time(rate("pathlens_stage_duration_seconds_sum", f'{ANSWERS},stage!="queue"', "stage"), "{{stage}}"),
    )
    return [files.span(12), coloured(stages, STAGES).span(12)]
