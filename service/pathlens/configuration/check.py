"""Whether a configuration can work, found out without starting anything."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version

from pathlens.configuration.archived_bundle import check_bundle
from pathlens.configuration.configuration import Configuration
from pathlens.configuration.ports import check_free
from pathlens.errors import PathlensError
from pathlens.gateway import Security
from pathlens.gateway.exposure import exposure_warnings
from pathlens.observability import TracingSettings, start_tracing
from pathlens.torchserve import ArchivedModel, ServedModels, TorchServeSettings
from pathlens.torchserve.installation import java_program, java_version, torchserve_home, workers_python
from pathlens.torchserve.instance import LOOPBACK


@dataclass(frozen=True)
class Findings:
    """What there is and what is wrong.

    Attributes:
        rows: What was found, part by part.
        warnings: What may be meant as it is.
        problems: What keeps the service from starting.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def take(self, part: str, find: Callable[[], str]) -> None:
        """Find something out.

        Args:
            part: What it is about.
            find: Returns what was found; a `PathlensError` of it is a problem.
        """
        try:
            self.rows.append((part, find()))
        except PathlensError as error:
            self.problems.append(f"{error.message} [{error.reason}]")


def check(configuration: Configuration) -> Findings:
    """Look at everything that `pathlens serve` needs: archives, programs, certificates, tokens and ports.

    Args:
        configuration: What the operator chose.

    Returns:
        What was found, with all problems and not the first alone.
    """
    findings = Findings()
    _check_archives(findings, configuration.torchserve)
    _check_programs(findings, configuration.torchserve)
    _check_gateway(findings, configuration)
    _check_torchserve_ports(findings, configuration.torchserve)
    return findings


def check_torchserve(configuration: Configuration) -> Findings:
    """Look at everything that `pathlens torchserve` needs: archives, programs and ports.

    Args:
        configuration: What the operator chose.

    Returns:
        What was found, with all problems and not the first alone.
    """
    settings = configuration.torchserve
    findings = Findings()
    _check_archives(findings, settings)
    _check_programs(findings, settings)
    _check_torchserve_ports(findings, settings)
    _check_port(findings, "health port", settings.host, settings.health_port, "torchserve.health_port")
    _check_port(findings, "metrics port", settings.host, settings.metrics_port, "torchserve.metrics_port")
    return findings


def check_gateway(configuration: Configuration) -> Findings:
    """Look at everything that `pathlens gateway` needs: certificates, tokens and ports.

    Args:
        configuration: What the operator chose.

    Returns:
        What was found, with all problems and not the first alone.
    """
    findings = Findings()
    _check_gateway(findings, configuration)
    return findings


def _tracing(settings: TracingSettings) -> str:
    tracing = start_tracing(settings)
    if tracing is None:
        return "off"
    tracing.close(0)
    return f"to {settings.endpoint}, {settings.sample_ratio:g} of the calls"


def _check_archives(findings: Findings, settings: TorchServeSettings) -> None:
    served = ServedModels.of(settings)
    findings.problems.extend(f"{error.message} [{error.reason}]" for error in served.problems)
    for model in served.models:
        findings.take(f"model {model.served_as}", partial(_archive, model, settings))


def _archive(model: ArchivedModel, settings: TorchServeSettings) -> str:
    check_bundle(model)
    pinned = ", SHA-256 as pinned" if {model.name, model.archive.name} & set(settings.archive_sha256) else ""
    return f"{model.archive}, {model.archive.stat().st_size / 1e6:.2f} MB{pinned}"


def _check_programs(findings: Findings, settings: TorchServeSettings) -> None:
    def java() -> str:
        program = java_program(settings.java_home)
        return f"{program}, version {java_version(program)}"

    def torchserve() -> str:
        return f"{torchserve_home() / 'ts'}, version {version('torchserve')}"

    findings.take("Java", java)
    findings.take("TorchServe", torchserve)
    findings.take("workers' Python", lambda: str(workers_python(settings.python)))


def _check_security(findings: Findings, configuration: Configuration) -> None:
    tls, authorisation = configuration.tls, configuration.authorisation

    def certificate() -> str:
        shown = Security(tls).certificate
        if shown is None:
            return "none: plain text"
        callers = "" if tls is None or tls.client_ca is None else "; callers show certificates, too"
        return f"for {', '.join(shown.names) or 'no host'} until {shown.ends:%Y-%m-%d %H:%M} UTC{callers}"

    def tokens() -> str:
        known = Security(None, authorisation).tokens
        if known is None:
            return "none asked for"
        return f"of {', '.join(known.names)}; health {authorisation.health}, reflection {authorisation.reflection}"

    findings.take("TLS certificate", certificate)
    findings.take("tokens", tokens)
    findings.warnings.extend(exposure_warnings(configuration.gateway.host, tls, authorisation))


def _check_gateway(findings: Findings, configuration: Configuration) -> None:
    gateway = configuration.gateway
    _check_security(findings, configuration)
    _check_port(findings, "gRPC port", gateway.host, gateway.port, "gateway.port", "--port")
    _check_port(
        findings, "metrics port", gateway.metrics_host, gateway.metrics_port, "gateway.metrics_port", "--metrics-port"
    )
    if gateway.health_port is not None:
        _check_port(findings, "health port", gateway.host, gateway.health_port, "gateway.health_port")
    findings.take("tracing", lambda: _tracing(configuration.tracing))


def _check_torchserve_ports(findings: Findings, settings: TorchServeSettings) -> None:
    # Most often they are for the system to choose, and nobody asks which ones.
    if settings.inference_port:
        _check_port(findings, "inference", LOOPBACK, settings.inference_port, "torchserve.inference_port")
    if settings.management_port:
        _check_port(findings, "management", LOOPBACK, settings.management_port, "torchserve.management_port")


def _check_port(findings: Findings, part: str, host: str, port: int, setting: str, option: str = "") -> None:
    def free() -> str:
        check_free(host, port, setting, option)
        return _address(host, port)

    findings.take(part, free)


def _address(host: str, port: int) -> str:
    return f"{host}, port {port}, free" if port else f"{host}, any free port"
