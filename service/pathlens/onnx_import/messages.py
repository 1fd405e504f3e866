"""What the errors of this room have in common."""

from pathlib import Path

from pathlens.errors import CaptureError


def first_line(error: Exception) -> str:
    """Return the first line of what an error of another library says, or its class where it says nothing."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def missing_extra(path: Path) -> CaptureError:
    """Return the error for an installation that cannot read ONNX files."""
    return CaptureError(f"Reading {path} needs further packages; install them with: pip install 'pathlens[onnx]'")
