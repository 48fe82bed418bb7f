"""The package for Hugging Face's ``kernels``: put together, loaded as the loader does it, and compared with normkit."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import MethodType, ModuleType

import pytest
import torch
from hub import build
from torch import nn

import normkit


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("hub") / "normkit"
    build.build(to)
    return to


@pytest.fixture(scope="module")
def loaded(package: Path) -> ModuleType:
    """The variant for CPUs, under its id, as ``kernels`` imports it."""
    folder = package / "build" / "torch-cpu"
    name = json.loads((folder / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    # The first call looks for compiled kernels.
    with pytest.warns(RuntimeWarning, match=r"this variant of the package has none.*take a variant with compiled kern"):
        module.rms_norm(torch.ones(1, 2), (2,))
    return module


def test_it_has_the_layout_that_the_hub_asks_for(package):
    assert (package / "README.md").read_text().startswith("---\nlibrary_name: kernels\nlicense: apache-2.0\n")
    assert (package / "benchmarks" / "benchmark.py").is_file()
    for backend in build.BACKENDS:
        folder = package / "build" / f"torch-{backend}"
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["name"] == "normkit"
        assert metadata["backend"] == {"type": backend}
        assert metadata["id"].isidentifier()
        assert metadata["id"].startswith(f"_normkit_{backend}_")
        assert metadata["digest"] == build.digest(folder)
        assert {"__init__.py", "layers/__init__.py", "normkit/__init__.py"} <= set(metadata["digest"]["files"])


def test_imports_are_relative_or_of_torch(package):
    files = list((package / "build" / "torch-cuda").rglob("*.py"))
    assert len(files) > 50
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top in ("torch", "triton"), f"{path}: {name}"


def test_no_operator_is_registered_under_the_name_of_normkit(package, loaded):
    assert hasattr(getattr(torch.ops, loaded.__name__), "norm")
    for path in (package / "build" / "torch-cpu").rglob("*.py"):
        text = path.read_text()
        assert not [old for old in ("torch.ops.normkit", 'Library("normkit', *build.TEXTS) if old in text], path


def test_functions_compute_as_those_of_normkit(loaded):
    torch.manual_seed(0)
    x, weight, gate = torch.randn(5, 24), torch.rand(24), torch.randn(5, 24)
    ours = normkit.functional
    # One computes the formula and the other one runs the kernels, in float32: sums of 24 terms in another order.
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(loaded.rms_norm(x, (24,), weight), ours.rms_norm(x, (24,), weight), **close)
    torch.testing.assert_close(loaded.layer_norm(x, (24,), weight), ours.layer_norm(x, (24,), weight), **close)
    torch.testing.assert_close(loaded.group_norm(x, 4), ours.group_norm(x, 4), **close)
    gated = loaded.gated_rms_norm(x, gate, weight), ours.gated_rms_norm(x, gate, weight)
    torch.testing.assert_close(*gated, **close)
    pattern = "b (g=3 [c])"
    torch.testing.assert_close(loaded.normalize(x, pattern), ours.normalize(x, pattern), **close)


def test_layers_have_a_forward_and_nothing_else(loaded):
    names = {name for name, value in vars(loaded.layers).items() if inspect.isclass(value) and value is not nn.Module}
    layers = {name for name in names if issubclass(getattr(loaded.layers, name), nn.Module)}
    assert layers == {"LayerNorm", "RMSNorm", "RMSNormGated", "RMSNormZeroCentered"}
    of_any = {name for name, _ in inspect.getmembers(nn.Module)}
    for name in layers:
        layer = getattr(loaded.layers, name)
        members = {each for each, _ in inspect.getmembers(layer)}
        assert layer.__init__ is nn.Module.__init__
        assert members - of_any == {"has_backward", "can_torch_compile"}


def test_a_layer_reads_the_state_of_the_module_it_is_put_on(loaded):
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(8), torch.randn(3, 8, requires_grad=True)
    nn.init.normal_(norm.weight)
    expected = norm(x)
    grads = torch.autograd.grad(expected.square().sum(), [x, norm.weight])
    norm.forward = MethodType(loaded.layers.LayerNorm.forward, norm)
    y = norm(x)
    # Float32, sums of 8 terms.
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), [x, norm.weight]), grads, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    not any(each.name == "kernels" for each in distributions()), reason="the kernels package is not installed"
)
def test_the_loader_of_the_hub_takes_it(package):
    import kernels

    class LlamaNorm(nn.Module):
        kernel_layer_name = "RMSNorm"

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.rand(8) + 0.5), 1e-6

        def forward(self, hidden_states):
            raise AssertionError("the layer of the package replaces this")

    model, x = nn.Sequential(LlamaNorm()), torch.randn(2, 8)
    layer = kernels.LocalLayerRepository(package, layer_name="RMSNorm")
    with kernels.use_kernel_mapping({"RMSNorm": {"cpu": layer}}, inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE, use_fallback=False)
    expected = nn.functional.rms_norm(x, (8,), model[0].weight, 1e-6)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)  # float32, sums of 8 terms


def test_texts_that_the_package_replaces_are_there():
    sources = "".join(path.read_text() for path in build.modules().values())
    assert all(old in sources for old in build.TEXTS)
