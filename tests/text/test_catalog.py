"""The catalog is complete in both languages, found by every name, and true to the engine."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import json
import math
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

import normkit
from normkit.catalog import CLAIMS, EVIDENCE, METHODS, Claim, Method, Text, claims, find, show
from normkit.errors import ArgumentError
from normkit.pattern import parse

CHINESE = re.compile(r"[\u4e00-\u9fff]")
NAMES = [method.name for method in METHODS]
CENTERED = {method.name for method in METHODS if method.center}
SOURCE = Path(normkit.__file__).parent
WITH_PATTERN = [method for method in METHODS if method.pattern]
STANDARDIZING = [method for method in WITH_PATTERN if method.target or method.name == "filter_response_norm"]
"""Those that are a region with weight and bias, perhaps with a threshold."""


def texts_in(value: object) -> list[Text]:
    if isinstance(value, Text):
        return [value]
    if isinstance(value, tuple):
        return [text for item in value for text in texts_in(item)]
    if isinstance(value, Method | Claim):
        return [text for field in dataclasses.fields(value) for text in texts_in(getattr(value, field.name))]
    return []


def test_every_text_is_there_in_both_languages():
    texts = [text for row in (*METHODS, *claims.ALL) for text in texts_in(row)]
    texts += [text for text in vars(show).values() if isinstance(text, Text)]
    assert len(texts) > 100
    for text in texts:
        assert CHINESE.search(text.to("zh")), text
        assert not CHINESE.search(text.to("en")), text


def test_chinese_titles_are_those_of_the_field():
    assert [find(name).title.to("zh") for name in ("BN", "LN", "IN", "GN", "WN", "RMS", "LRN")] == [
        "批归一化", "层归一化", "实例归一化", "组归一化", "权重归一化", "均方根归一化", "局部响应归一化",
    ]  # fmt: skip


def test_an_unknown_language_is_refused():
    with pytest.raises(ArgumentError, match="texts exist in en and zh, got 'fr': use one of these"):
        show.markdown("fr")


def test_copies_of_a_text_keep_both_languages():
    title = find("group_norm").title
    for twin in (copy.copy(title), copy.deepcopy(title), pickle.loads(pickle.dumps(title))):
        assert (twin, twin.zh) == (title, title.zh)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_every_name_finds_its_method(method: Method):
    for name in (method.name, method.title, method.title.zh, *method.aliases, *method.layers):
        assert find(name) is method
        assert find(f" {name.upper()}-") is method


@pytest.mark.parametrize(
    ("name", "remedy"), [("grop_norm", "did you mean 'group_norm'"), ("xyz", "known: batch_norm, .*group_norm")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, remedy: str):
    with pytest.raises(ArgumentError, match=f"no normalization is called '{name}': {remedy}"):
        find(name)


def test_claims_belong_to_the_method_they_are_about():
    owned = [claim for method in METHODS for claim in method.claims]
    assert sorted([*owned, "P-1", "P-2", "QK-1"]) == sorted(CLAIMS)
    assert list(CLAIMS) == list(EVIDENCE)
    for method in METHODS:
        assert all(find(claim.rpartition("-")[0]) is method for claim in method.claims)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_the_names_exist(method: Method):
    for layer in method.layers:
        assert isinstance(getattr(normkit, layer), type)
    home = normkit if method.of_weights else normkit.functional
    assert callable(getattr(home, method.name))


STATISTICS = {
    "[b] c [...]": 6,
    "b [c ...]": 2,
    "... [c]": 2 * 6 * 4,
    "b c [...]": 2 * 6,
    "b (g [c]) [...]": 2 * 3,
    "b [...] c": 2 * 5,
    "[b] (g [c]) [...]": 3,
    "b [c] ...": 2 * 4 * 5,
}
"""How many means an input of shape (2, 6, 4, 5) with three groups has."""


@pytest.mark.parametrize("method", WITH_PATTERN, ids=lambda method: method.name)
def test_patterns_have_the_statistics_they_promise(method: Method):
    for pattern in method.patterns:
        region = parse(pattern)
        if "g" in [axis.name for axis in region.axes]:
            region = region.bind(g=3)
        levels = region.levels((2, 6, 4, 5))
        assert math.prod(level.size for level in levels if not level.reduced) == STATISTICS[pattern]


@pytest.mark.parametrize("method", STANDARDIZING, ids=lambda method: method.name)
def test_the_formula_is_what_the_engine_computes(method: Method):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    weight, bias, threshold = torch.randn(3, 4, 1, dtype=torch.float64)
    # Channels last, so that the one pattern "b [c]" ... reads as every method's on a single region.
    side, formula = method.formula.split(" = ")
    names = {
        "x": x,
        "mean": x.mean(1, keepdim=True) if method.center else lambda value: value.mean(1, keepdim=True),
        "var": x.var(1, keepdim=True, correction=0),
        "sqrt": torch.sqrt,
        "eps": 0.1,
        "weight": weight,
        "bias": bias,
        "threshold": threshold,
        "max": torch.maximum,
    }
    y = eval(formula.replace("²", "**2"), {}, names)
    assert side == "y"
    expected = normkit.functional.normalize(
        x, "b [c] ...", weight[:, 0], bias[:, 0] if "bias" in formula else None, 0.1, method.center
    )
    if "threshold" in formula:
        expected = torch.maximum(expected, threshold)
    torch.testing.assert_close(y, expected)


def test_the_formula_of_weight_norm_is_what_it_computes():
    v, g = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    layer = normkit.weight_norm(torch.nn.Linear(4, 3, dtype=torch.float64))
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(g)
        layer.parametrizations.weight.original1.copy_(v)
    formula = find("WN").formula.removeprefix("w = ").replace("||v||", "length")
    torch.testing.assert_close(layer.weight, eval(formula, {}, {"g": g, "v": v, "length": v.norm(dim=1, keepdim=True)}))


def test_the_formula_of_weight_standardization_is_what_it_computes():
    v, gain = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    formula = find("WS").formula.removeprefix("w = ")
    names = {"v": v, "gain": gain, "eps": find("WS").eps, "sqrt": torch.sqrt, "mean": v.mean(1, keepdim=True)}
    w = eval(formula, {}, names | {"var": v.var(1, keepdim=True, correction=0)})
    torch.testing.assert_close(normkit.functional.weight_standardization(v, gain[:, 0]), w)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_eps_is_the_default_of_the_layers(method: Method):
    homes = [getattr(normkit, name) for name in method.layers] or [getattr(normkit, method.name)]
    for home in homes:
        eps = inspect.signature(home).parameters.get("eps")
        assert method.eps == (0.0 if eps is None else eps.default)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_methods_that_keep_statistics_can_be_asked_to(method: Method):
    for name in method.layers:
        asked = "track_running_stats" in inspect.signature(getattr(normkit, name)).parameters
        assert method.keeps_statistics == asked


@pytest.mark.parametrize("method", [each for each in METHODS if each.target], ids=lambda method: method.name)
def test_a_norm_can_become_and_be_inserted_as_what_the_catalog_says(method: Method):
    """The layer made on an image computes the method's region, centred or not."""
    assert method.target is not None
    x = torch.randn(3, 8, 4, 4)
    model, _ = normkit.convert(torch.nn.Sequential(torch.nn.BatchNorm2d(8)), to=method.name, example=x, num_groups=4)
    y = model.train()(x)
    region = method.target.replace("(g ", "(g=4 ")
    torch.testing.assert_close(y, normkit.functional.normalize(x, region, eps=1e-5, center=method.center))


@pytest.mark.parametrize(
    "method", [each for each in METHODS if not each.target and not each.replaces_norms], ids=lambda method: method.name
)
def test_a_norm_becomes_nothing_else(method: Method):
    with pytest.raises(ArgumentError, match=f"a norm can become batch_norm, .* or a pattern, got '{method.name}'"):
        normkit.convert(torch.nn.Sequential(torch.nn.BatchNorm2d(8)), to=method.name)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_insert_knows_what_the_catalog_says(method: Method):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 3))
    example = torch.randn(2, 3, 8, 8)
    if method.replaces_norms and method.patterns == ("... [c]",):  # no layer of its own for dimension 1
        model, example = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Linear(8, 3)), torch.randn(2, 3)
    if method.insertable:
        model, report = normkit.insert(model, method.title, example=example)
        assert [row.name for row in report.inserted] == ["0"]
        assert method.of_weights == torch.nn.utils.parametrize.is_parametrized(model[0])
    else:
        with pytest.raises(ArgumentError, match=f"insert adds batch_norm, .*; got '{method.title}'"):
            normkit.insert(model, method.title)


def test_methods_of_a_study_have_marks_of_their_own():
    marks = [method.mark for method in METHODS if method.insertable]
    assert None not in marks
    assert len(set(marks)) == len(marks)


def names_in(nodes: Iterable[ast.expr | None]) -> set[str]:
    return {str(node.value) for node in nodes if isinstance(node, ast.Constant) and node.value in NAMES}


def lists_kept_by_hand(source: str) -> Iterator[str]:
    """Five names in one literal are a list that a new row would be missing from; exports are no such list."""
    exports: list[ast.expr] = []
    quoted = any(f'"{name}"' in source or f"'{name}'" in source for name in NAMES)
    for node in ast.walk(ast.parse(source)) if quoted else ():  # an assignment comes before what it assigns
        if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
            exports.append(node.value)
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.NotEq):
            if not names_in(node.comparators) <= CENTERED:
                yield f"line {node.lineno}: ask the row whether it centres"
        elif isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict) and node not in exports:
            found = names_in(node.keys if isinstance(node, ast.Dict) else node.elts)
            if len(found) >= 5:
                yield f"line {node.lineno}: {', '.join(sorted(found))}; derive them from the catalog"


def test_no_list_of_methods_is_kept_by_hand():
    five = repr(sorted(NAMES)[:5])
    for source, count in ((five, 1), (f"__all__ = {five}", 0), ("x != 'rms_norm'", "rms_norm" not in CENTERED)):
        assert len(list(lists_kept_by_hand(source))) == count
    paths = sorted(SOURCE.rglob("*.py"))
    found = {str(path.relative_to(SOURCE)): list(lists_kept_by_hand(path.read_text("utf-8"))) for path in paths}
    assert not {path: lines for path, lines in found.items() if lines}


def test_the_formula_of_local_response_norm_is_what_it_computes():
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    formula = find("LRN").formula.removeprefix("y = ").replace("mean(x² over the window)", "energy")
    y = eval(formula, {}, {"x": x, "k": 1.5, "alpha": 0.5, "beta": 0.6, "energy": x**2})
    torch.testing.assert_close(y, normkit.functional.local_response_norm(x, 1, 0.5, 0.6, 1.5))


def test_the_formulas_of_their_own_are_what_is_computed():
    f = normkit.functional
    # Channels in dimension 1 of a single sample, of which all other dimensions are positions.
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    weight, bias, v = torch.rand(3, 4, 1, dtype=torch.float64)
    var = x.var(2, keepdim=True, correction=0)
    alpha, shift, eps = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64), 0.1
    names = {
        **{"x": x, "weight": weight, "bias": bias, "v": v, "var": var, "alpha": alpha, "shift": shift, "eps": eps},
        **{"sqrt": torch.sqrt, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "erf": torch.erf},
        **{"mean": lambda t: t.mean(1, keepdim=True), "max": lambda a, b: torch.maximum(a, torch.as_tensor(b))},
    }
    w, b, slope = weight[:, 0], bias[:, 0], v[:, 0]
    cases: list[tuple[str, torch.Tensor, dict[str, object]]] = [
        ("GRN", f.global_response_norm(x, w, b, eps), {"length": x.norm(dim=2, keepdim=True)}),
        ("EvoNorm-S0", f.evo_norm_s0(x, 4, slope, w, b, eps), {}),
        ("EvoNorm-B0", f.evo_norm_b0(x, None, slope, w, b, True, eps=eps), {"batch_var": var}),
        ("DyT", f.dynamic_tanh(x, alpha, w, b, channels_last=False), {}),
        ("Derf", f.dynamic_erf(x, alpha, shift, w, b, channels_last=False), {}),
        ("ScaleNorm", f.scale_norm(x.mT, alpha, eps).mT, {"length": x.norm(dim=1, keepdim=True), "weight": alpha}),
    ]
    for name, y, more in cases:
        formula = find(name).formula.removeprefix("y = ").replace("||x||", "length")
        torch.testing.assert_close(y, eval(formula, {}, names | more))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_markdown_is_made_of_whole_tables(lang: str):
    bars = re.compile(r"(?<!\\)\|")
    blocks = [block.splitlines() for block in show.markdown(lang).split("\n\n") if block.startswith("|")]
    assert [len(block) - 2 for block in blocks] == [len(METHODS), len(METHODS), len(CLAIMS)]
    for block in blocks:
        assert len({len(bars.findall(line)) for line in block}) == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_data_are_plain_and_whole(lang: str):
    data = json.loads(json.dumps(show.data(lang)))
    assert [row["name"] for row in data["methods"]] == NAMES
    assert {claim["id"]: claim["text"] for claim in data["claims"]} == {c: CLAIMS[c].to(lang) for c in CLAIMS}
    assert data["methods"][0]["paper"]["arxiv"] == "1502.03167"
    assert bool(CHINESE.search(data["methods"][0]["strengths"][0])) == (lang == "zh")


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_a_card_shows_all_that_is_known(method: Method):
    shown = "\n".join(line for _, lines in show.card(method) for line in lines)
    for text in (*texts_in(method)[1:], *method.patterns, *method.aliases, *method.layers, *method.claims):
        assert text in shown
    assert all(lines for _, lines in show.card(method, "zh"))
