"""One call of the fuzzer: everything that is needed to send it, and to send it again."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

SERVICE = "/pathlens.v1.ExplanationService/"
STREAM = SERVICE + "StreamExplain"
BATCH = SERVICE + "BatchExplain"
UNARY = tuple(
    SERVICE + name for name in ("Predict", "Explain", "BatchExplain", "GetClassPathway", "ListModels", "GetModel")
)
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CONNECTION = "connection"
"""Stands for bytes that are written to the port without a gRPC client in between."""

STREAMING = frozenset({STREAM, REFLECTION})


@dataclass(frozen=True)
class FuzzCall:
    """One call with one case, or with one in each of its items.

    Attributes:
        kind: What was done to it, for the table.
        method: Full name of the call, or `CONNECTION`.
        messages: Serialised requests; one, unless the method streams.
        metadata: Keys and values that go with it.
        timeout: The caller's own deadline in seconds, which may pass; None means that an answer has to come.
        cases: How many cases it holds.
    """

    kind: str
    method: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    timeout: float | None = None
    cases: int = 1

    def save(self, path: Path, findings: list[str]) -> None:
        """Write the call, and what was found, as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "findings": findings,
            "kind": self.kind,
            "method": self.method,
            "messages": [_text(message) for message in self.messages],
            "metadata": [
                [key, value if isinstance(value, str) else {"bytes": _text(value)}] for key, value in self.metadata
            ],
            "timeout": self.timeout,
            "cases": self.cases,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "FuzzCall":
        """Read what `save` has written."""
        content = json.loads(path.read_text())
        metadata = tuple(
            (key, value if isinstance(value, str) else base64.b64decode(value["bytes"]))
            for key, value in content["metadata"]
        )
        messages = tuple(base64.b64decode(message) for message in content["messages"])
        return cls(content["kind"], content["method"], messages, metadata, content["timeout"], content["cases"])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
