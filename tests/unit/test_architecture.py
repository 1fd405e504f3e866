"""Who may import whom, what an application can do without torch, and that nothing is ever unpickled."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIRE = sorted((ROOT / "service" / "pathlens" / "wire").rglob("*.py"))
WITHOUT_TORCH = [
    "pathlens",
    "pathlens.client",
    "pathlens.cli.main",
    "pathlens.cli.explain",
    "pathlens.cli.gateway",
    "pathlens.cli.models",
    "pathlens.cli.serve",
    "pathlens.cli.torchserve",
    "pathlens.errors",
    "pathlens.explanation",
    "pathlens.gateway",
    "pathlens.serving",
    "pathlens.settings",
    "pathlens.torchserve",
    *(".".join(path.relative_to(ROOT / "service").with_suffix("").parts).removesuffix(".__init__") for path in WIRE),
]
SOURCES = sorted(path for folder in ("service", "handlers") for path in (ROOT / folder).rglob("*.py"))


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def test_everything_that_an_application_imports_works_without_torch() -> None:
    # An entry of None makes the import of torch fail, as where it is not installed.
    done = python(
        "import importlib, sys\n"
        "sys.modules['torch'] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "from pathlens import Client\n"
        "Client('localhost:1').close()\n",
        *WITHOUT_TORCH,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["pathlens", "pathlens.client", "pathlens.gateway", "pathlens.cli.main"])
def test_importing_it_does_not_bring_torch_along(name: str) -> None:
    done = python(
        "import importlib, sys\n"
        "importlib.import_module(sys.argv[1])\n"
        "print(sorted({'torch', 'PIL', 'ts'} & set(sys.modules)))",
        name,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"], ["models", "--help"], ["--version"]])
def test_the_command_line_of_an_application_works_without_torch(arguments: list[str]) -> None:
    done = python(
        "import sys\nsys.modules['torch'] = None\nfrom pathlens.cli import main\nmain(sys.argv[1:])", *arguments
    )
    assert done.returncode == 0, done.stderr
    assert "pathlens" in done.stdout


def test_a_command_that_needs_torch_says_what_to_install() -> None:
    # A finder that knows no torch fails as a missing package does.
    done = python(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from pathlens.cli import main\nmain(['fit', '--help'])"
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "Error: No module named 'torch'. Install what this needs: pip install 'pathlens[fit]'"
    ]


def test_the_public_names_are_those_agreed() -> None:
    done = python(
        "import pathlens\n"
        "for name in ('capture', 'neuron_mct', 'pathway_gradient', 'load_bundle', 'Client'):\n"
        "    assert name in dir(pathlens) and callable(getattr(pathlens, name)), name\n"
        "try: pathlens.nonsense\n"
        "except AttributeError as error: print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "module 'pathlens' has no attribute 'nonsense'"


def test_the_import_contracts_are_kept() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str | None, object]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            yield ast.unparse(node.func), dict(keywords)


def dangers(source: str) -> list[str]:
    """Name every call in Python source that could run code hidden in data."""
    found = []
    tree = ast.parse(source)
    for function, keywords in calls(tree):
        module, _, name = function.rpartition(".")
        if name in {"load", "loads", "Unpickler"} and module.split(".")[-1] in {"pickle", "cPickle", "dill", "joblib"}:
            found.append(function)
        if function == "torch.load" and keywords.get("weights_only") is not True:
            found.append(function)
        if function in {"np.load", "numpy.load"} and keywords.get("allow_pickle") is not False:
            found.append(function)
        if function in {"eval", "exec", "torch.jit.load", "torch.package.PackageImporter", "pd.read_pickle"}:
            found.append(function)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "dill", "cloudpickle", "joblib"}:
            found += [f"from {node.module}" for alias in node.names if alias.name != "UnpicklingError"]
        if isinstance(node, ast.ImportFrom) and node.module in {"torch", "numpy"}:
            found += [f"from {node.module}" for alias in node.names if alias.name == "load"]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[path.relative_to(ROOT).as_posix() for path in SOURCES])
def test_nothing_is_unpickled(path: Path) -> None:
    assert dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(file)",
        "pickle.loads(data)",
        "pickle.Unpickler(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "from pickle import loads",
        "from torch import load",
        "eval(text)",
    ],
)
def test_the_scan_for_unpickling_sees_it(source: str) -> None:
    assert dangers(source)


def test_the_scan_for_unpickling_lets_safe_loading_pass() -> None:
    assert dangers("torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)\njson.loads(text)") == []


def test_the_scan_sees_the_modules_that_read_files() -> None:
    names = {path.name for path in SOURCES}
    assert {"sources.py", "images.py", "store.py", "pathlens_handler.py"} <= names
