"""Read every classifier of the tests as both exporters of PyTorch write it, and the graphs of the ONNX model zoo.

Prints a row for each; the status is 1 if a file cannot be read, differs from ONNX Runtime or has other taps. Give names
of networks, of graphs of the zoo or of exporters with an opset, such as ResNet "legacy 17", to read these alone.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from exported_classifiers import (
    NETWORKS,
    OPSETS,
    can_write,
    captured_file,
    described,
    example,
    exported,
    taps_of_original,
)
from onnx_files import Exporter, by_onnx_runtime, is_close
from onnx_zoo import NAMES, zoo_file, zoo_logits_file
from pathlens.errors import CaptureError
from small_networks import images

EQUAL = "equal"
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "log-softmax": lambda logits: logits.log_softmax(1),
}
"""What the reader takes off, because its input are the logits."""


def main() -> int:
    """Print both tables and return the status."""
    files = {f"{exporter} {opset}": (exporter, opset) for exporter, opsets in OPSETS.items() for opset in opsets}
    if unknown := set(sys.argv[1:]) - {*NETWORKS, *NAMES, *files}:
        sys.exit(f"There are no {', '.join(sorted(unknown))}; there are {', '.join((*NETWORKS, *NAMES, *files))}.")
    columns = [files[name] for name in _chosen(files)]
    table = Table("network", *_chosen(files))
    verdicts = list[str]()
    # Graphs alone need no networks, and networks alone no graphs.
    graphs, networks = set(NAMES) & set(sys.argv[1:]), set(NETWORKS) & set(sys.argv[1:])
    for name in () if graphs and not networks else _chosen(NETWORKS):
        row = [_of_exporter(name, exporter, opset) for exporter, opset in columns]
        table.add_row(name, *row)
        verdicts += row
    zoo = Table("graph of the zoo", "")
    for name in () if networks and not graphs else _chosen(NAMES):
        verdicts.append(_of_zoo(name))
        zoo.add_row(name, verdicts[-1])
    console = Console(width=200)
    console.print(table, zoo)
    wrong = [verdict for verdict in verdicts if verdict not in (EQUAL, "")]
    console.print(f"{verdicts.count(EQUAL)} equal to ONNX Runtime, {len(wrong)} not")
    return bool(wrong)


def _chosen(names: Iterable[str]) -> list[str]:
    names = list(names)
    return [name for name in names if name in sys.argv[1:]] or names


def _of_exporter(name: str, exporter: Exporter, opset: int) -> str:
    if not can_write(exporter, opset, name):
        return ""
    path = exported(name, exporter, opset)
    try:
        classifier = captured_file(path, example(name))
    except CaptureError as error:
        return str(error)
    for count in (1, 3):
        batch = example(name, count, seed=5)
        if not is_close(ENDS.get(name, torch.clone)(classifier(batch)), by_onnx_runtime(path, batch)):
            return "other logits"
    return EQUAL if described(classifier.taps) == described(taps_of_original(name)) else "other taps"


def _of_zoo(name: str) -> str:
    batch = images(3, 5, 224) + images(3, 6, 1)
    try:
        logits = captured_file(zoo_file(name), batch[:2])(batch)
    except CaptureError as error:
        return str(error)
    one_by_one = [by_onnx_runtime(zoo_logits_file(name), image[None]) for image in batch]
    expected = torch.cat(one_by_one).view(3, -1)
    # Random weights make logits of hundreds, whose rounding errors are in the small ones, too.
    largest = max(1, float(expected.abs().max()))
    return EQUAL if is_close(logits / largest, expected / largest) else "other logits"


if __name__ == "__main__":
    sys.exit(main())
