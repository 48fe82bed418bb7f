"""The catalog is complete in both languages, found by every name, and true to the engine."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import re

import pytest
import torch

import normkit
from normkit.catalog import CLAIMS, EVIDENCE, METHODS, Claim, Method, Text, claims, find, show
from normkit.errors import ArgumentError
from normkit.pattern import parse

CHINESE = re.compile(r"[\u4e00-\u9fff]")
NAMES = [method.name for method in METHODS]
WITH_PATTERN = [method for method in METHODS if method.pattern]


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
    ("name", "remedy"), [("grop_norm", "did you mean 'group_norm'"), ("xyz", "known: batch_norm, group_norm")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, remedy: str):
    with pytest.raises(ArgumentError, match=f"no normalization is called '{name}': {remedy}"):
        find(name)


def test_claims_belong_to_the_method_they_are_about():
    owned = [claim for method in METHODS for claim in method.claims]
    assert sorted([*owned, "P-1"]) == sorted(CLAIMS)
    assert list(CLAIMS) == list(EVIDENCE)
    for method in METHODS:
        assert all(claim.split("-")[0] in method.aliases for claim in method.claims)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_the_names_exist(method: Method):
    for layer in method.layers:
        assert isinstance(getattr(normkit, layer), type)
    home = normkit if method.name == "weight_norm" else normkit.functional
    assert callable(getattr(home, method.name))


STATISTICS = {
    "[b] c [...]": 6,
    "b [c ...]": 2,
    "... [c]": 2 * 6 * 4,
    "b c [...]": 2 * 6,
    "b (g [c]) [...]": 2 * 3,
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


@pytest.mark.parametrize("method", WITH_PATTERN, ids=lambda method: method.name)
def test_the_formula_is_what_the_engine_computes(method: Method):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    weight, bias = torch.randn(2, 4, 1, dtype=torch.float64)
    # Channels last, so that the one pattern "b [c]" ... reads as every method's on a single region.
    side, formula = method.formula.split(" = ")
    centred = method.name != "rms_norm"
    names = {
        "x": x,
        "mean": x.mean(1, keepdim=True) if centred else lambda value: value.mean(1, keepdim=True),
        "var": x.var(1, keepdim=True, correction=0),
        "sqrt": torch.sqrt,
        "eps": 0.1,
        "weight": weight,
        "bias": bias,
    }
    y = eval(formula.replace("²", "**2"), {}, names)
    assert side == "y"
    expected = normkit.functional.normalize(
        x, "b [c] ...", weight[:, 0], bias[:, 0] if "bias" in formula else None, 0.1, centred
    )
    torch.testing.assert_close(y, expected)


def test_the_formula_of_weight_norm_is_what_it_computes():
    v, g = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    layer = normkit.weight_norm(torch.nn.Linear(4, 3, dtype=torch.float64))
    with torch.no_grad():
        layer.parametrizations.weight.original0.copy_(g)
        layer.parametrizations.weight.original1.copy_(v)
    formula = find("WN").formula.removeprefix("w = ").replace("||v||", "length")
    torch.testing.assert_close(layer.weight, eval(formula, {}, {"g": g, "v": v, "length": v.norm(dim=1, keepdim=True)}))


def test_the_formula_of_local_response_norm_is_what_it_computes():
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    formula = find("LRN").formula.removeprefix("y = ").replace("mean(x² over the window)", "energy")
    y = eval(formula, {}, {"x": x, "k": 1.5, "alpha": 0.5, "beta": 0.6, "energy": x**2})
    torch.testing.assert_close(y, normkit.functional.local_response_norm(x, 1, 0.5, 0.6, 1.5))


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
