"""The arrows run diffsfsr <- assets <- pipelines, never back and never in a circle; nested and lazy imports count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("diffsfsr", "assets", "pipelines")
# Top-level names that a package must not import. The dagster family is written dagster, dagster_pipes, dagster_...
FORBIDDEN = {
    "diffsfsr": ("assets", "pipelines", "dagster", "mlflow", "lancedb", "lance"),
    "assets": ("pipelines",),
    "pipelines": (),
}
ONLY_IN = {"deepspeed": "diffsfsr.training.launch"}
IMPORTERS = ("import_module", "__import__", "run_module")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """(imported dotted name, line) of each import in a file, at any depth, by statement or by a literal name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(name, path, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in known else base), node.lineno
        elif isinstance(node, ast.Call) and node.args and _called(node) in IMPORTERS:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, node.lineno


def _absolute(name: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    return ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def mentions(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """(module, line) of each string that is exactly a module's dotted name: a table of lazy imports, or a `-m` of a command."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value and node.value in known:
            yield node.value, node.lineno


def back_arrows(root: Path) -> list[str]:
    """One line for each import that the layout forbids."""
    known, found = modules(root), []
    for name, path in known.items():
        for target, line in {*imports(name, path, known), *mentions(path, known)}:
            top = target.partition(".")[0]
            if any(top == bad or top.startswith(f"{bad}_") for bad in FORBIDDEN[name.partition(".")[0]]):
                found.append(f"{path.relative_to(root)}:{line} imports {target}")
            if ONLY_IN.get(top, name) != name:
                found.append(f"{path.relative_to(root)}:{line} imports {target}, which only {ONLY_IN[top]} may")
    return sorted(found)


def cycles(root: Path) -> list[str]:
    """Each circle of modules that import one another, as 'a -> b -> a'."""
    known = modules(root)
    graph = {name: sorted({t for t, _ in imports(name, path, known) if t in known}) for name, path in known.items()}
    found, done = [], set[str]()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for target in graph[name]:
                visit(target, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_no_arrow_runs_back() -> None:
    assert {name.partition(".")[0] for name in modules(ROOT)} == set(PACKAGES)
    assert back_arrows(ROOT) == []


def test_no_circle_of_imports() -> None:
    assert cycles(ROOT) == []


def test_every_package_is_listed() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in modules(ROOT).values()}
    assert folders == set(listed)


# --- the checker itself, on planted trees -----------------------------------------------------------------------------


def plant(root: Path, files: dict[str, str]) -> Path:
    for package in PACKAGES:
        (root / package).mkdir()
        (root / package / "__init__.py").touch()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("diffsfsr/a.py", "import assets.b"),
        ("diffsfsr/a.py", "def f():\n    def g():\n        from pipelines import b"),
        ("diffsfsr/a.py", "import os, mlflow.pyfunc as m"),
        ("diffsfsr/a.py", "from dagster_pipes import open_dagster_pipes"),
        ("diffsfsr/a.py", "import importlib\nimportlib.import_module('lancedb')"),
        ("diffsfsr/a.py", "from importlib import import_module\nx = lambda: import_module('assets.b')"),
        ("diffsfsr/a.py", "__import__('pipelines')"),
        ("diffsfsr/a.py", "TABLE = {'B': 'assets.b'}"),
        ("diffsfsr/deep/a.py", "try:\n    from ...assets import b\nexcept ImportError:\n    from assets import b"),
        ("diffsfsr/a.py", "if False:\n    import deepspeed.comm"),
        ("diffsfsr/training/loop.py", "import deepspeed"),
        ("assets/a.py", "class A:\n    import pipelines"),
        ("assets/a.py", "from deepspeed import initialize"),
    ],
)
def test_the_checker_sees_a_back_arrow(tmp_path: Path, file: str, text: str) -> None:
    root = plant(tmp_path, {"assets/b.py": "", "pipelines/b.py": "", file: text})
    assert back_arrows(root) and all(line.startswith(file) for line in back_arrows(root))


def test_the_checker_allows_what_is_right(tmp_path: Path) -> None:
    files = {
        "diffsfsr/a.py": '"""Read by assets.b, not by mlflow."""\nimport torch\nfrom . import b\nfrom diffsfsr.b import C',
        "diffsfsr/b.py": "import dagsterish, deepspeedy",
        "diffsfsr/training/launch.py": "def f():\n    import deepspeed",
        "assets/b.py": "import dagster, mlflow, lancedb\nfrom diffsfsr import a",
        "pipelines/c.py": "import assets.b, diffsfsr.a, dagster",
    }
    root = plant(tmp_path, files)
    assert back_arrows(root) == [] and cycles(root) == []


@pytest.mark.parametrize(
    "files",
    [
        {"diffsfsr/a.py": "from diffsfsr import b", "diffsfsr/b.py": "from diffsfsr.a import f"},
        {"diffsfsr/a.py": "import diffsfsr.b", "diffsfsr/b.py": "def f():\n    from .c import x", "diffsfsr/c.py": "from . import a"},
        {"assets/s/__init__.py": "from assets.s.a import f", "assets/s/a.py": "from assets.s import g"},
        {"assets/a.py": "from assets.a import f"},
    ],
)
def test_the_checker_sees_a_circle(tmp_path: Path, files: dict[str, str]) -> None:
    assert len(cycles(plant(tmp_path, files))) == 1
