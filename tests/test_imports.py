"""Imports point one way, none is circular, every folder is small enough to read, ``import normkit`` loads little."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import normkit

ROOT = Path(__file__).parents[1]
SOURCE = Path(normkit.__file__).parent
# In each package, from the foundation up: a file may import only from what comes before it.
ORDER: dict[str, list[str]] = {
    "normkit": [
        *("errors", "settings", "build", "pattern", "catalog", "plan", "merging", "kernels", "backends", "functional"),
        *("layers", "evaluation", "parametrize", "tools", "draw", "study", "cli", "__main__"),
    ],
    "normkit.catalog": ["row", "claims", "rows", "methods", "show"],
    "normkit.kernels": [
        *("dtypes", "context", "regions", "formula", "backend", "native", "fastpath", "triton", "devices", "layout"),
        *("batched", "sharded", "traced", "operator", "quantized", "weight"),
    ],
    "normkit.kernels.traced": ["decomposed", "export", "fusion", "entry", "lowering", "inductor"],
    "normkit.kernels.sharded": ["sharding", "rules", "others", "register"],
    "normkit.functional.call": [
        *("checks", "fusions", "epilogue", "nested", "precision", "recompute", "mapped", "running", "spec", "moments"),
    ],
    "normkit.functional.batch": ["norm", "update", "renorm", "ghost", "sync", "power_norm"],
    "normkit.layers.base": ["checks", "layer", "tracked", "versions"],
    "normkit.parametrize": ["checks", "weight", "standardize", "weight_init", "spectral"],
    "normkit.tools": [
        *("model", "load", "freeze", "recalibrate", "param_groups", "fold_training", "convert", "fold", "to_rms_norm"),
        *("kernelize", "finish", "insert", "replace_placement", "watch", "audit"),
    ],
    "normkit.tools.model": [
        *("info", "refusal", "names", "statistics", "wrapped", "valid", "activated", "frozen", "probe", "own"),
        "recognise",
        *("tree", "call", "graph"),
    ],
    "normkit.tools.model.graph": ["recorder", "call_graph", "symbolic", "dataflow", "values", "call_order"],
    "normkit.tools.convert": [
        "build",
        "identity",
        "target",
        "torch_encoder",
        "calibrate",
        "scalars",
        "fade",
        "report",
        "run",
    ],
    "normkit.tools.fold_training": ["layer", "pairs", "exported", "report", "run"],
    "normkit.tools.fold": [
        *("fold_math", "check", "norms", "ties", "evidence", "report", "writer", "readers", "folding", "run"),
    ],
    "normkit.tools.to_rms_norm": ["report", "channels", "change", "trial", "streams", "plan", "conversion", "run"],
    "normkit.tools.kernelize": ["layers", "report", "run"],
    "normkit.tools.replace_placement": [
        *("undo", "norm_units", "record", "residuals", "source", "roles", "report", "plan", "calibrate", "run"),
    ],
    "normkit.tools.watch": ["record", "heat_map", "sinks", "figures", "watcher"],
    "normkit.tools.audit": [
        *("measure", "rules", "sarif", "report", "ignore", "source", "run", "options", "command"),
        *("examples", "examples_training", "remedies"),
    ],
    "normkit.tools.audit.measure": ["moments", "batches", "facts", "trials", "sample_call", "invariance"],
    "normkit.tools.audit.rules": [
        *("chinese", "rule", "axes", "structure", "placement", "size", "state", "constants", "training", "usage"),
    ],
    "benchmarks": [
        *("speed", "gpu", "harm", "show", "run", "accuracy", "compiled", "models", "folded", "composed", "extras"),
        *("recalibration", "training", "trials", "watch", "audit_harm", "audit_pages"),
    ],
    "benchmarks.gpu": ["cells", "clock", "layers", "models", "report", "run", "check"],
    "benchmarks.models": ["unet", "subjects", "measure", "report", "__main__"],
    "benchmarks.watch": ["cost", "picture", "gallery"],
    "benchmarks.speed": [
        *("measure", "pages", "saved", "workloads", "peers", "contestants", "oracle", "pictures", "tables", "report"),
    ],
    "benchmarks.harm": ["experiments", "later_rules", "chinese"],
    "release": ["symbols", "wheels"],
}
# In these, each file that the package's `__init__` imports has methods; the others are shared by the methods.
METHODS = ["normkit.functional", "normkit.layers"]
SUFFIXES = (".py", ".cpp", ".h", ".html", ".css", ".js", ".sh")


def module_of(path: Path) -> str:
    top = SOURCE.parent if path.is_relative_to(SOURCE) else ROOT
    return ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted([*SOURCE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "release").rglob("*.py")])
MODULES = {module_of(path): path for path in FILES}


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """All that are in a node, without its expressions: these are most of a tree and import nothing."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        inside = getattr(node, field, ())
        for inner in inside if isinstance(inside, list) else ():
            if isinstance(inner, ast.stmt):
                yield inner
            yield from statements(inner)


def imported(source: str) -> Iterator[str]:
    """The modules of the project that a source imports anywhere: in functions, for types, as names of a package."""
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names if node.module in MODULES else ():
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


@functools.cache
def imports() -> dict[str, list[str]]:
    return {module: list(dict.fromkeys(imported(path.read_text("utf-8")))) for module, path in MODULES.items()}


def unit(module: str, package: str) -> str | None:
    """The file or folder of a package that a module is in; None for the package itself and whatever is outside."""
    inside, _, rest = module.partition(f"{package}.")
    return rest.partition(".")[0] if not inside and rest else None


def test_every_form_of_an_import_is_seen():
    assert list(imported("from normkit.kernels import operator")) == ["normkit.kernels.operator"]
    assert list(imported("from normkit import functional, catalog")) == ["normkit.functional", "normkit.catalog"]
    assert list(imported("from normkit import show_backends")) == ["normkit"]
    assert list(imported("from normkit.catalog import METHODS")) == ["normkit.catalog"]
    assert list(imported("def f():\n    import benchmarks.run")) == ["benchmarks.run"]
    for inside in ("if x:\n  pass\nelse:\n  {}", "try:\n  pass\nexcept E:\n  {}", "match x:\n  case 1:\n    {}"):
        assert list(imported(inside.format("import benchmarks.run"))) == ["benchmarks.run"]
    assert unit("normkit.tools.audit.rules.size", "normkit.tools") == "audit"
    assert unit("normkit.tools", "normkit.tools") is None


@pytest.mark.parametrize("package", ORDER)
def test_a_file_imports_only_from_those_before_it(package: str):
    order = ORDER[package]
    assert set(order) == {unit(module, package) for module in MODULES} - {None}, "give each file a place in ORDER"
    for module, others in imports().items():
        here = unit(module, package)
        for other in others if here else ():
            there = unit(other, package)
            assert there is None or order.index(there) <= order.index(here), f"{module} imports upward: {other}"


@pytest.mark.parametrize("package", METHODS)
def test_what_methods_share_imports_no_method(package: str):
    methods = {unit(other, package) for other in imports()[package]} - {None}
    assert methods
    for module, others in imports().items():
        if unit(module, package) and unit(module, package) not in methods:
            assert not methods & {unit(other, package) for other in others}, f"{module} imports a method"


def test_only_the_top_imports_the_public_names():
    inside = {module for module, others in imports().items() if "normkit" in others and module.startswith("normkit")}
    assert {unit(module, "normkit") for module in inside} == {"study", "cli"}, inside


def test_no_import_is_circular():
    # Without `normkit` itself, which names everything and loads it on first use.
    graph = {module: [other for other in others if other != "normkit"] for module, others in imports().items()}
    del graph["normkit"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' <- '.join(error.args[1])}")


def test_no_folder_is_too_large():
    found = {}
    for top in ("src", "csrc", "tests", "benchmarks", "release"):
        for folder in {path.parent for path in (ROOT / top).rglob("*") if path.suffix in SUFFIXES}:
            files = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
            if len(files) > 14:
                found[folder.relative_to(ROOT).as_posix()] = len(files)
    assert not found, f"these need folders inside: {found}"


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_load_nothing():
    assert not loaded_by("import normkit") & {"torch", "triton", "matplotlib", "optuna", "sklearn", "scipy", "typer"}


def test_layers_load_torch_and_no_study():
    loaded = loaded_by("import normkit; normkit.BatchNorm2d, normkit.functional, normkit.weight_norm")
    assert "torch" in loaded
    assert not loaded & {"triton", "matplotlib", "optuna", "sklearn", "scipy", "typer", "rich", "jinja2"}


def test_the_public_names_exist():
    for name in normkit.__all__:
        assert getattr(normkit, name) is not None
    with pytest.raises(AttributeError, match="did you mean 'BatchNorm2d'"):
        normkit.BatchNorm2D  # noqa: B018
