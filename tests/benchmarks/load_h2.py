"""A second opinion on the throughput: nghttp2's h2load, which knows HTTP/2 and nothing of gRPC."""

import re
import shutil
import struct
import subprocess
from pathlib import Path

HOW_TO_INSTALL = "h2load is not installed: apt-get install nghttp2-client (Debian), or brew install nghttp2 (macOS)"

_FINISHED = re.compile(r"finished in ([\d.]+)(ms|s), ([\d.]+) req/s")
_REQUESTS = re.compile(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed")
_STATUS_CODES = re.compile(r"status codes: (\d+) 2xx")


def h2load(address: str, method: str, request: bytes, in_flight: int, seconds: int, folder: Path) -> dict[str, float]:
    """Load a service with h2load.

    It counts every answer of HTTP as a success, errors of gRPC included: compare it with the service's own counters.

    Args:
        address: host:port of the service.
        method: Full name of the call.
        request: The serialised request.
        in_flight: Calls at one time, over two connections.
        seconds: For how long.
        folder: Where the body of the request is kept.

    Returns:
        Requests per second, and how many succeeded and failed as HTTP; empty if h2load is not installed.

    Raises:
        RuntimeError: h2load failed.
    """
    program = shutil.which("h2load")
    if program is None:
        return {}
    body = folder / "request.grpc"
    # Before each message gRPC says whether it is compressed, and its length.
    body.write_bytes(struct.pack(">BI", 0, len(request)) + request)
    headers = ("--header", "content-type: application/grpc", "--header", "te: trailers")
    size = ("--clients", "2", "--max-concurrent-streams", str(max(1, in_flight // 2)), "--duration", str(seconds))
    done = subprocess.run(
        [program, *size, *headers, "--data", str(body), f"http://{address}{method}"],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    finished, requests = _FINISHED.search(done.stdout), _REQUESTS.search(done.stdout)
    codes = _STATUS_CODES.search(done.stdout)
    if finished is None or requests is None or codes is None:
        raise RuntimeError(f"h2load failed: {done.stdout}{done.stderr}")
    return {
        "requests_per_second": float(finished[3]),
        "answered_with_2xx": int(codes[1]),
        "failed": int(requests[5]),
    }
