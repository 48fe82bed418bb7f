"""Every row of the catalog keeps every promise of the contract."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import contract
from cases import CASES, DTYPES, Case, Oracle, layouts, make_input
from normkit.catalog import METHODS

ON_GPU = (*sorted(Path(__file__).parent.rglob("test_triton*.py")), Path(__file__).with_name("cases.py"))
FEW = ("batch_norm rows", "layer_norm", "instance_norm 3d with statistics", "Norm of groups")
every = pytest.mark.parametrize("case", CASES, ids=str)
same_shape = pytest.mark.parametrize("case", [case for case in CASES if case.elementwise], ids=str)
with_torch = pytest.mark.parametrize("case", [case for case in CASES if case.torch], ids=str)
by_dtype = pytest.mark.parametrize(
    ("case", "dtypes"),
    # A matrix product wants one dtype for all its factors.
    [(case, dtypes) for case in CASES for dtypes in DTYPES if case.elementwise or "beside" not in dtypes],
    ids=str,
)
by_layout = pytest.mark.parametrize(
    ("case", "layout"), [(case, layout) for case in CASES for layout in layouts(case)], ids=str
)


def test_every_method_of_the_catalog_has_a_case():
    assert {method.name for method in METHODS} == {case.row for case in CASES}


def test_inputs_follow_the_default_device():
    with torch.device("meta"):
        assert make_input(CASES[0]).is_meta
    assert make_input(CASES[0]).is_cpu


def test_a_generator_of_the_cpu_draws_on_the_cpu():
    """In tests that set the GPU as default device."""
    for path in ON_GPU:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {keyword.arg for keyword in node.keywords}
                assert "generator" not in keywords or "device" in keywords, f"{path.name}:{node.lineno} needs device="


@by_dtype
def test_values_in_every_dtype(case: Case, dtypes: str):
    contract.values(case, dtypes, "contiguous")


@by_layout
def test_values_in_every_layout(case: Case, layout: str):
    contract.values(case, "float32", layout)
    contract.values(case, "bfloat16 beside float32" if case.elementwise else "bfloat16", layout)


@by_dtype
def test_gradients_in_every_dtype(case: Case, dtypes: str):
    contract.gradients(case, dtypes, "contiguous")


@by_layout
def test_gradients_in_every_layout(case: Case, layout: str):
    contract.gradients(case, "float32", layout)


@every
@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fast", "whole"])
def test_first_and_second_derivatives_numerically(case: Case, fast: bool):
    contract.second_derivatives(case, fast)


@every
def test_gradients_of_one_leaf_at_a_time(case: Case):
    contract.one_leaf_at_a_time(case)


@with_torch
def test_initial_state_and_state_dict_of_torch(case: Case):
    contract.initial_state(case)


@with_torch
def test_running_statistics_of_torch(case: Case):
    contract.running_statistics(case)


@every
def test_copies(case: Case):
    contract.copies(case)


@every
def test_empty_input(case: Case):
    contract.empty(case)


@every
def test_refusals(case: Case):
    contract.refusals(case)


# Local response norm calls torch's pow, whose last place depends on where in the tensor a value stands.
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.per_sample and isinstance(case.oracle, Oracle)], ids=str
)
def test_a_sample_alone_equals_itself_in_a_batch(case: Case):
    contract.alone_as_in_a_batch(case)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in FEW], ids=str)
def test_compile_gives_one_graph(case: Case):
    contract.compiles(case)
