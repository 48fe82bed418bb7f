"""Imports point one way, and the front door stays light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import normkit

SOURCE = Path(normkit.__file__).parent
# From the foundation up: a module may import only from what stands before it.
ORDER = [
    "errors",
    "settings",
    "pattern",
    "catalog",
    "plan",
    "kernels",
    "backends",
    "functional",
    "layers",
    "parametrize",
    "tools",
]
ORDER += ["draw", "study", "cli", "__main__"]
# Within the kernels.
INSIDE = ["dtypes", "context", "formula", "backend", "native", "fastpath", "triton", "devices", "layout", "batched"]
INSIDE += ["export", "operator", "quantized", "weight"]
# Within the tools: what they share, then the verbs; and within what they share.
TOOLS = ["model", "load", "freeze", "recalibrate", "param_groups", "fold", "convert", "insert", "watch", "audit"]
MODEL = ["info", "refusal", "names", "statistics", "wrapped", "valid", "activated", "frozen", "probe"]
MODEL += ["recognise", "tree", "call", "graph"]


def imported(path):
    """The normkit modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "normkit":
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "normkit" else [node.module]
            )
            yield from names
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "normkit")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downward(path):
    here = path.relative_to(SOURCE).with_suffix("").parts
    if here == ("__init__",):
        return
    rank = ORDER.index(here[0])
    for name in imported(path):
        parts = name.split(".")[1:]
        if not parts or parts[0] not in ORDER:
            # the front door itself: only what stands at the top may use it
            assert here[0] in ("study", "cli"), f"{path} imports from the front door: {name}"
            continue
        assert ORDER.index(parts[0]) <= rank, f"{path} imports upward: {name}"
        if here[0] == parts[0] == "kernels" and len(parts) > 1 and here[1] in INSIDE and parts[1] != here[1]:
            assert INSIDE.index(parts[1]) < INSIDE.index(here[1]), f"{path} imports upward: {name}"


def modules_of(path):
    """The same with the names that a statement takes from a package, where these are modules of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "normkit":
            folder = SOURCE.joinpath(*node.module.split(".")[1:])
            modules = [a.name for a in node.names if (folder / f"{a.name}.py").exists() or (folder / a.name).is_dir()]
            yield from [f"{node.module}.{name}" for name in modules] or [node.module]


@pytest.mark.parametrize("path", sorted((SOURCE / "tools").rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_tools_import_downward(path):
    _, *here = path.relative_to(SOURCE).with_suffix("").parts
    if here == ["__init__"]:
        return
    for name in modules_of(path):
        _, top, *parts = name.split(".")
        if top != "tools":
            continue
        assert parts, f"{path} imports from the folder of all tools: {name}"
        assert TOOLS.index(parts[0]) <= TOOLS.index(here[0]), f"{path} imports upward: {name}"
        if here[0] == parts[0] == "model" and here[1] != parts[1]:
            assert MODEL.index(parts[1]) < MODEL.index(here[1]), f"{path} imports upward: {name}"


def test_no_circle_among_the_tools():
    graph = {}
    for path in (SOURCE / "tools").rglob("*.py"):
        name = ".".join(["normkit", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        graph[name] = [other for other in modules_of(path) if other.startswith("normkit.tools.")]
    TopologicalSorter(graph).prepare()


def test_no_folder_of_the_tools_is_too_large():
    for folder in {path.parent for path in (SOURCE / "tools").rglob("*.py")}:
        assert len(list(folder.glob("*.py"))) <= 14, f"{folder} needs rooms"


def test_every_module_has_its_place():
    parts = [p for p in SOURCE.iterdir() if p.suffix != ".so"]
    names = {p.stem if p.is_file() else p.name for p in parts} - {
        "__init__",
        "__pycache__",
        "py",
    }
    assert names <= set(ORDER), "give the new module a place in ORDER"


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_front_door_loads_nothing():
    assert not loaded_by("import normkit") & {"torch", "triton", "matplotlib", "optuna", "sklearn", "scipy", "typer"}


def test_layers_load_torch_and_no_study():
    loaded = loaded_by("import normkit; normkit.BatchNorm2d, normkit.functional, normkit.weight_norm")
    assert "torch" in loaded
    assert not loaded & {"triton", "matplotlib", "optuna", "sklearn", "scipy", "typer", "rich", "jinja2"}


def test_the_front_door_names_what_is_there():
    for name in normkit.__all__:
        assert getattr(normkit, name) is not None
    with pytest.raises(AttributeError, match="did you mean 'BatchNorm2d'"):
        normkit.BatchNorm2D  # noqa: B018
