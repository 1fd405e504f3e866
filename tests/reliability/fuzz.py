"""Send a great many odd calls to a real service, and look for one that it cannot take.

    python tests/reliability/fuzz.py --cases 100000 --seed 0
    python tests/reliability/fuzz.py --replay build/reliability/findings/0-1234.json

Nothing may crash, restart or hang; nothing may be answered with INTERNAL or UNKNOWN, without a documented reason or
with our internals in the message; answers have to make sense; and a request whose answer is known has to be answered so
before, meanwhile and after. The exit code is 1 if anything was found. A finding is a file that --replay sends again.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import click
import grpc
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

# Beside this file lie modules that the tests use, too.
sys.path.insert(0, str(Path(__file__).parents[1]))

from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.fuzz_call import SERVICE, FuzzCall
from reliability.fuzz_cases import KINDS, fuzz_call
from reliability.fuzz_judge import judged, summary
from reliability.fuzz_sender import FuzzSender
from reliability.served_process import ServedProcess
from tiny_bundle import tiny_bundle

FOLDER = Path(__file__).parents[2] / "build" / "reliability"
CONCURRENCY = 24
# A run that finds something everywhere is stopped: its findings are all the same.
MOST_FINDINGS = 200
KNOWN_SECONDS = 2.0
REOPENED = "gRPC has closed port"

FINDING = click.Path(exists=True, dir_okay=False, path_type=Path)
console = Console(stderr=True)


@dataclass
class Report:
    """What a run saw."""

    seed: int
    calls: Counter[str] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    findings: list[dict[str, object]] = field(default_factory=list)
    known_answers: int = 0
    reopened: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    interrupted: bool = False
    memory: dict[str, object] = field(default_factory=dict)

    def find(self, found: list[str], call: FuzzCall | None = None, name: str = "") -> None:
        """Add what was found, and keep the call."""
        finding: dict[str, object] = {"findings": found}
        if call is not None:
            path = FOLDER / "findings" / f"{name}.json"
            call.save(path, found)
            finding |= {"kind": call.kind, "method": call.method, "file": str(path.relative_to(FOLDER.parents[1]))}
        self.findings.append(finding)


@contextmanager
def served() -> Iterator[ServedProcess]:
    """Serve the tiny classifier of the tests."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        save_bundle(tiny_bundle(), folder / "bundle")
        with ServedProcess(pack(folder / "bundle", folder), folder) as service:
            yield service


def known_call() -> FuzzCall:
    """Make the request whose answer is known."""
    image = pb.Image(tensor=pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=[9, 9], data=bytes(range(0, 243, 3))))
    return FuzzCall("known", SERVICE + "Explain", (pb.ExplainRequest(image=image).SerializeToString(),))


async def known_answer(sender: FuzzSender) -> bytes:
    """Ask what is known; the times in the answer are left out.

    Raises:
        RuntimeError: There is no answer.
    """
    outcome = await sender.send(known_call())
    if outcome.code is not grpc.StatusCode.OK:
        raise RuntimeError(f"The service answers a sound request with {outcome.code}: {outcome.message}")
    answer = pb.ExplainResponse.FromString(outcome.responses[0])
    answer.ClearField("timings")
    return answer.SerializeToString(deterministic=True)


async def run(service: ServedProcess, report: Report, cases: int) -> None:
    """Send calls until enough cases are sent."""
    (FOLDER / "findings").mkdir(parents=True, exist_ok=True)
    processes = service.processes()
    report.memory["before"] = service.memory()
    started = time.monotonic()
    try:
        async with FuzzSender(service.address) as sender:
            expected = await known_answer(sender)
            await _send_all(sender, report, cases, expected)
            if await known_answer(sender) != expected:
                report.find(["the known request is answered otherwise than before"])
    except RuntimeError as error:
        report.find([str(error)])
    finally:
        report.seconds = time.monotonic() - started
    report.memory["after"] = service.memory()
    for found in wrong_service(service, processes, report):
        report.find([found])
    if report.findings:
        (FOLDER / "findings" / "gateway.log").write_text(service.log.read_text())


def wrong_service(service: ServedProcess, processes: dict[int, str], report: Report) -> Iterator[str]:
    """Say what has become of the service itself."""
    if (status := service.status()) is not None:
        yield f"the gateway ended with {status}"
        return
    if (left := service.processes()) != processes:
        yield f"processes were replaced: {processes} became {left}"
    for (metric, *labels), value in service.counters().items():
        if metric == "pathlens_requests_total" and value and labels[0] in ("INTERNAL", "UNKNOWN"):
            yield f"the gateway counts {value:g} calls of {labels[1]} as {labels[0]}"
    log = service.log.read_text()
    report.reopened = log.count(REOPENED)
    # Each time that grpc closes the port it also forgets to look at an exception of its own.
    if log.count("Traceback") > report.reopened:
        yield "the gateway's log has a traceback: findings/gateway.log"


async def _send_all(sender: FuzzSender, report: Report, cases: int, expected: bytes) -> None:
    numbers = count()
    with progress() as bar:
        task = bar.add_task("", total=cases, found=0)

        async def work() -> None:
            while report.cases.total() < cases and len(report.findings) < MOST_FINDINGS:
                number = next(numbers)
                call = fuzz_call(report.seed, number)
                # Counted first, or every worker would send the last one.
                report.calls[call.kind] += 1
                report.cases[call.kind] += call.cases
                await _send(sender, report, call, f"{report.seed}-{number}")
                bar.update(task, advance=call.cases, found=len(report.findings))

        async def ask_meanwhile() -> None:
            while True:
                await asyncio.sleep(KNOWN_SECONDS)
                if await known_answer(sender) != expected:
                    report.find(["meanwhile the known request is answered otherwise than before"])
                report.known_answers += 1

        asking = asyncio.create_task(ask_meanwhile())
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENCY):
                    group.create_task(work())
        except* asyncio.CancelledError:
            report.interrupted = True
        asking.cancel()
        (ended,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(ended, RuntimeError):
            report.find([str(ended)])


async def _send(sender: FuzzSender, report: Report, call: FuzzCall, name: str) -> None:
    try:
        outcome = await sender.send(call)
    except OSError as error:
        report.find([f"the port cannot be reached: {error}"], call, name)
        return
    report.slowest_seconds = max(report.slowest_seconds, outcome.seconds)
    report.outcomes[call.kind].update(summary(call, outcome))
    if found := judged(call, outcome):
        report.find(sorted(set(found)), call, name)


def progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("cases, {task.fields[found]} found"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def show(report: Report) -> None:
    """Print what each kind of cases came to."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, side in (("cases of", "left"), ("calls", "right"), ("cases", "right"), ("came to", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for kind in KINDS:
        most = ", ".join(f"{name} {number:,}" for name, number in report.outcomes[kind].most_common(4))
        table.add_row(kind, f"{report.calls[kind]:,}", f"{report.cases[kind]:,}", most)
    Console().print(table)
    Console().print(
        f"{report.cases.total():,} cases in {report.calls.total():,} calls and {report.seconds:.0f} s,"
        f" seed {report.seed}; the slowest call took {report.slowest_seconds:.1f} s; {report.known_answers}"
        f" known requests were answered as before, the port was opened again {report.reopened} times;"
        f" {len(report.findings)} findings" + ("; interrupted" if report.interrupted else "")
    )
    for finding in report.findings[:20]:
        Console().print(f"  {finding.get('file', '')} {'; '.join(map(str, finding['findings']))}"[:400], markup=False)  # type: ignore[call-overload]


def save(report: Report) -> Path:
    """Write the report as JSON."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "fuzz.json"
    content = {
        "seed": report.seed,
        "cases": report.cases.total(),
        "calls": report.calls.total(),
        "seconds": round(report.seconds, 1),
        "slowest_seconds": round(report.slowest_seconds, 2),
        "known_answers": report.known_answers,
        "port_reopened": report.reopened,
        "interrupted": report.interrupted,
        "memory_mib": report.memory,
        "kinds": {
            kind: {"calls": report.calls[kind], "cases": report.cases[kind], "outcomes": dict(report.outcomes[kind])}
            for kind in KINDS
        },
        "findings": report.findings,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


async def replay(service: ServedProcess, report: Report, path: Path) -> None:
    """Send one call again, and show what comes back."""
    call = FuzzCall.load(path)
    async with FuzzSender(service.address) as sender:
        outcome = await sender.send(call)
        console.print(f"{call.method}: {outcome.code} {outcome.message}", markup=False)
        if found := judged(call, outcome):
            report.find(sorted(set(found)))
        await known_answer(sender)


@click.command()
@click.option("--cases", default=100_000, show_default=True, type=click.IntRange(1), help="How many to send.")
@click.option("--seed", default=0, show_default=True, help="Another seed sends other calls.")
@click.option(
    "--replay", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Send a finding again."
)
def main(cases: int, seed: int, file: Path | None) -> None:
    """Look for a call that a real service cannot take."""
    report = Report(seed)
    try:
        with console.status("Starting the service") as status, served() as service:
            status.stop()
            asyncio.run(run(service, report, cases) if file is None else replay(service, report, file))
    except KeyboardInterrupt:
        report.interrupted = True
    if file is None:
        show(report)
        click.echo(f"Written: {save(report)}", err=True)
    else:
        for finding in report.findings:
            click.echo(f"found: {finding['findings']}")
    # As a shell says that a program was interrupted.
    raise SystemExit(1 if report.findings else 130 if report.interrupted else 0)


if __name__ == "__main__":
    main()
