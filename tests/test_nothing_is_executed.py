"""No file that is read can run code: the package's own source is looked through for what would let it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("torchimpt", "experiments", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "tarfile", "zipfile"}
"""What runs what a file says, or unpacks where it says."""

CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    ("os", "system"),
    ("os", "popen"),
    ("shutil", "unpack_archive"),
    ("torch.jit", "load"),
    ("torch.hub", "load"),
    ("numpy", "fromregex"),
}


def breaches(tree: ast.AST) -> list[str]:
    """What there is of these in a file's source, each with its line."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found += [f"line {node.lineno}: imports {name}" for name in names if name.partition(".")[0] in MODULES]  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        wrong = called in CALLS or tuple(called.rpartition(".")[::2]) in METHODS
        wrong |= called == "torch.load" and given.get("weights_only") != "True"
        wrong |= given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False"
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node)[:80]}")
    return found


def test_nothing_that_is_read_is_run():
    found = {str(path.relative_to(ROOT)): breaches(ast.parse(path.read_text(encoding="utf-8"))) for path in FILES}
    assert len(found) > 100 and {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from yaml import load", "torch.load(path)", "torch.load(path, weights_only=False)", "eval(text)",
        "np.load(path, allow_pickle=True)", "subprocess.run(line, shell=True)", "os.system(line)", "from zipfile import ZipFile",
    ],
)  # fmt: skip
def test_what_would_run_is_found(source):
    assert len(breaches(ast.parse(source))) == 1
    assert breaches(ast.parse("torch.load(path, weights_only=True); np.load(path); re.compile(text); model.eval()")) == []
