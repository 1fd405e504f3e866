"""Which module of the original classifier an ONNX node comes from, as far as the file tells.

PyTorch's newer exporter notes the modules in the metadata of each node. Its older one puts them into the names of
nodes: "/features/features.1/conv/conv.0/Clip" belongs to the module "features.1.conv.0", because a segment that repeats
the one before it goes on from there. Of any other node, its own name has to do.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate

_CALL_NUMBER = re.compile(r"(.+)_\d+")


def module_paths(nodes: Sequence[tuple[str, str]], weights: Iterable[str]) -> list[str]:
    """Return the qualified name of the module that owns each node; empty for the classifier itself.

    Args:
        nodes: In order of execution, the name of each and what PyTorch's newer exporter noted, or nothing.
        weights: Names of all weights. They tell a module called "block_1" from the second call of "block".
    """
    prefixes = {prefix for name in weights for prefix in accumulate(name.split(".")[:-1], "{}.{}".format)}
    seen: set[tuple[str, str]] = set()
    paths = []
    for name, text in nodes:
        noted = _noted(text)
        paths.append(_from_name(name, prefixes, seen) if noted is None else noted)
    return paths


def _noted(text: str) -> str | None:
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(scopes, list) or len(scopes) < 2 or not all(isinstance(scope, str) for scope in scopes):
        return None
    module: str = scopes[-2]
    return re.sub(r"@\d+", "", module)


def _from_name(name: str, modules: set[str], seen: set[tuple[str, str]]) -> str:
    first, *rest = name.split("/")
    if not rest:
        return first
    if first:
        return ".".join([first, *rest[:-1]])
    path, before = "", ""
    for segment in rest[:-1]:
        parent, again = path, _CALL_NUMBER.fullmatch(segment)
        if again and (parent, again[1]) in seen and _joined(parent, before, segment) not in modules:
            segment = again[1]
        seen.add((parent, segment))
        path, before = _joined(parent, before, segment), segment
    return path


def _joined(parent: str, before: str, segment: str) -> str:
    if before and segment.startswith(f"{before}."):
        return parent + segment.removeprefix(before)
    return ".".join(filter(None, (parent, segment)))
