"""What our own code never calls: whatever runs what a file says. Each exception stands here with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("harness", "methods", "suites", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
"""Never imported."""
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.hub.load"}
CALLS |= {"np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load"}
CALLS |= {"yaml.full_load", "shutil.unpack_archive", "subprocess.getoutput", "subprocess.getstatusoutput"}
METHODS = {"extractall", "read_pickle", "unsafe_load"}
"""Never called, of whatever object: archives are unpacked member by member, each checked."""
ALLOWED = {
    ("harness/runs/ray_worker.py", "extractall"): "filter='data': no link, device, absolute name or way out, which "
    "unit/test_ray_worker.py tries"
}
"""(file, what) -> why it is harmless there."""


def name_of(node: ast.expr) -> str:
    """Return a dotted name, or the empty string for anything else."""
    if isinstance(node, ast.Attribute):
        base = name_of(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def dangers(text: str) -> Iterator[str]:
    """Yield what in a module could run what a file says."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            if (name := name_of(node.func)) in CALLS:
                yield name
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield node.func.attr
            for keyword in node.keywords:
                on = not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                if keyword.arg in ("trust_remote_code", "shell", "allow_pickle", "weights_only") and on:
                    yield str(keyword.arg)


def test_our_code_never_runs_what_a_file_says() -> None:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = {(file.relative_to(ROOT).as_posix(), what) for file in files for what in dangers(file.read_text())}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(file, weights_only=False)",
        "np.load(file)",
        "exec(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=flag)",
        "subprocess.run(x, shell=True)",
        "tarfile.open(x).extractall(y)",
        "yaml.load(x)",
    ],
)
def test_the_search_finds_each(text: str) -> None:
    assert list(dangers(text))


def test_every_loading_of_transformers_says_that_remote_code_is_off() -> None:
    asked = []
    for file in sorted((ROOT / "harness").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and name_of(node.func).split(".")[-1] in ("from_pretrained", "from_config"):
                loader = name_of(node.func).split(".")[-2]
                if loader.startswith("Auto"):
                    asked.append(any(keyword.arg == "trust_remote_code" for keyword in node.keywords))
    assert len(asked) >= 4
    assert all(asked)
