"""What Prometheus sees of TorchServe: its processes, and how often they were started again."""

import threading
from collections.abc import Iterator

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pathlens.errors import ServerStartError
from pathlens.torchserve.process import TorchServe

RESTART_REASONS = ("ended", "deaf", "start_failed")
"""Why TorchServe was restarted: it ended by itself, its models answered nothing, or the restart before failed."""

_JVM, _WORKER = "jvm", "worker"
_KINDS = (_JVM, _WORKER)
_WORKER_PROGRAM = "model_service_worker.py"


class TorchServeCollector(Collector):
    """Looks at the processes of a TorchServe with every scrape.

    Args:
        torchserve: The one to look at; it may be started again, or not run.
    """

    def __init__(self, torchserve: TorchServe) -> None:
        self._torchserve = torchserve
        self._lock = threading.Lock()
        # A series that appears with its first event hides this event from rate(); so all of them begin at zero.
        self._restarts = dict.fromkeys(RESTART_REASONS, 0)
        # What each process has computed by the last look at it; what ended ones had is kept by kind.
        self._computed: dict[psutil.Process, tuple[str, float]] = {}
        self._ended = dict.fromkeys(_KINDS, 0.0)

    def restarted(self, reason: str) -> None:
        """Count an attempt to start TorchServe again.

        Args:
            reason: One of `RESTART_REASONS`.
        """
        with self._lock:
            self._restarts[reason] += 1

    def collect(self) -> Iterator[Metric]:
        """Give the metrics as they are now, as Prometheus' client library asks for them."""
        restarts = CounterMetricFamily(
            "pathlens_torchserve_restarts", "Attempts to start TorchServe again.", labels=["reason"]
        )
        processes = GaugeMetricFamily(
            "pathlens_torchserve_processes", "Processes of TorchServe that run.", labels=["process"]
        )
        memory = GaugeMetricFamily(
            "pathlens_torchserve_resident_memory_bytes",
            "Memory that TorchServe's processes have, with those that they have started.",
            labels=["process"],
        )
        cpu = CounterMetricFamily(
            "pathlens_torchserve_cpu_seconds",
            "Time that TorchServe's processes have computed, with those that have ended.",
            labels=["process"],
        )
        with self._lock:
            for reason, count in self._restarts.items():
                restarts.add_metric([reason], count)
            counts, resident = self._look()
            for kind in _KINDS:
                processes.add_metric([kind], counts[kind])
                memory.add_metric([kind], resident[kind])
                running = sum(seconds for of, seconds in self._computed.values() if of == kind)
                cpu.add_metric([kind], self._ended[kind] + running)
        yield restarts
        yield CounterMetricFamily(
            "pathlens_worker_restarts",
            "Workers that TorchServe has replaced after they had ended.",
            value=self._torchserve.worker_restarts,
        )
        yield from (processes, memory, cpu)

    def _look(self) -> tuple[dict[str, int], dict[str, int]]:
        """Count processes and their memory by kind, and remember what they have computed."""
        counts, resident = dict.fromkeys(_KINDS, 0), dict.fromkeys(_KINDS, 0)
        seen: dict[psutil.Process, tuple[str, float]] = {}
        for process, kind, is_child in self._processes():
            try:
                with process.oneshot():
                    times, own = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue
            counts[kind] += not is_child
            resident[kind] += own
            seen[process] = kind, times.user + times.system
        for process in self._computed.keys() - seen.keys():
            kind, seconds = self._computed[process]
            if process.is_running():
                # It could not be looked at, for this time.
                seen[process] = kind, seconds
            else:
                self._ended[kind] += seconds
        self._computed = seen
        return counts, resident

    def _processes(self) -> Iterator[tuple[psutil.Process, str, bool]]:
        """Find the JVM, its workers, and what these have started."""
        try:
            jvm = psutil.Process(self._torchserve.pid)
            children = jvm.children()
        except (ServerStartError, psutil.Error):
            return
        yield jvm, _JVM, False
        for child in children:
            try:
                # The JVM starts other programs, too, for a moment each: to count GPUs, and to become a worker.
                if not any(_WORKER_PROGRAM in word for word in child.cmdline()):
                    continue
                descendants = child.children(recursive=True)
            except psutil.Error:
                continue
            yield child, _WORKER, False
            for process in descendants:
                yield process, _WORKER, True
