"""What the explorer shows of a choice: shape, counts, link, texts, and code that computes what the page says."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from typing import Any

import pytest
import torch
from javascript import FOLDER, answers

from normkit import functional
from normkit.catalog import METHODS, find

START = {
    "method": "", "pattern": "b (g [c]) [...]", "batch": 3, "channels": [6], "positions": [2, 3], "groups": 2,
    "layout": "contiguous",
}  # fmt: skip

SHOWN = """state => {
  const method = nk.catalog.methods.find(each => each.name === state.method) ?? null;
  const found = state.pattern ? nk.describe(state) : null;
  return { found, code: nk.code(found, method), formula: found && nk.formulaOf(found, method),
           statistics: found && nk.statistics(found, method) };
}"""


def shown(**change: Any) -> dict[str, Any]:
    return answers(SHOWN, [START | change])[0]


def run(code: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_list_of_methods_is_current():
    made = runpy.run_path(str(FOLDER.parents[1] / "explorer_catalog.py"))
    assert made["FILE"] == FOLDER / "catalog.js"
    assert made["FILE"].read_text(encoding="utf-8") == made["script"](), "run python docs/site/explorer_catalog.py"


def choices() -> list[dict[str, Any]]:
    """Every method with each of its regions, on tensors of two to five dimensions and in both layouts."""
    out: list[dict[str, Any]] = []
    for method in METHODS:
        for pattern in method.patterns or ("",):
            for positions, layout in itertools.product(([], [5], [2, 3], [2, 2, 3]), ("contiguous", "channels_last")):
                if (pattern or (positions, layout) == ([], "contiguous")) and not (
                    # Statistics over the positions of one sample need positions, and whitening a batch of them.
                    pattern.startswith("b ") and pattern.endswith(("[...]", "c")) and not positions
                ):
                    out.append(
                        START | {"method": method.name, "pattern": pattern, "positions": positions, "layout": layout}
                    )
    return out


def test_the_code_of_every_method_runs_and_gives_the_same_twice():
    asked = choices()
    answered = answers(SHOWN, asked)
    assert {choice["method"] for choice in asked} == {method.name for method in METHODS}
    # Their layers start with a threshold of 0, a weight of 0, and a weight of the root of the number of channels.
    other_start = {"filter_response_norm", "global_response_norm", "scale_norm"}
    own = set()
    for choice, each in zip(asked, answered, strict=True):
        method, code = find(choice["method"]), each["code"]
        layer = run(code["layer"])
        own |= {method.name for name in method.layers if f"normkit.{name}(" in code["layer"]}
        if method.of_weights:
            assert code["function"] is None
            assert torch.nn.utils.parametrize.is_parametrized(layer["layer"], "weight")
            continue
        function = run(code["function"])
        x = function["x"]
        if each["found"]:
            assert list(x.shape) == each["found"]["shape"]
            assert list(x.stride()) == each["found"]["strides"]
        if method.name not in other_start:
            # With a weight of 1 and a bias of 0, y rounds once more: by half an eps of float32, for |y| below 4.
            assert torch.allclose(layer["y"], function["y"], rtol=0, atol=1e-6), choice
    assert own == {method.name for method in METHODS if not method.of_weights}


def test_the_same_region_as_a_pattern_gives_the_same_values():
    for name in ("batch_norm", "layer_norm", "instance_norm", "group_norm", "layer_norm2d"):
        for pattern in find(name).patterns:
            code = shown(method=name, pattern=pattern)["code"]
            for block in (code["layer"], code["function"]):
                first, second = block.split("# the same, written as a region\n")
                names = run(first)
                y = names["y"]
                exec(second, names)
                assert y is not names["y"]
                # The two have other eps for pixels: 1e-6 and 1e-5.
                assert torch.allclose(y, names["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pattern", "change", "shape", "count", "cells"),
    [
        ("[b] c [...]", {}, [3, 6, 2, 3], 18, 6),
        ("b [c] h [w]", {}, [3, 6, 2, 3], 18, 6),
        ("b [c] l", {}, [3, 6, 6], 6, 18),
        ("b c d h [w]", {}, [3, 6, 2, 2, 3], 3, 72),
        ("... [c]", {}, [3, 2, 3, 6], 6, 18),
        ("... [c1 c2]", {"channels": [2, 6]}, [3, 2, 3, 2, 6], 12, 18),
        ("c [...]", {}, [6, 2, 3], 6, 6),
        ("[b] c", {"positions": []}, [3, 6], 3, 6),
        ("[...]", {"positions": [5]}, [3, 5], 15, 1),
        ("b (g=3 [c]) [h w]", {"groups": 2}, [3, 6, 2, 3], 12, 9),
    ],
)
def test_a_shape_is_made_for_every_pattern(
    pattern: str, change: dict[str, Any], shape: list[int], count: int, cells: int
):
    found = shown(pattern=pattern, **change)["found"]
    assert found["shape"] == shape
    assert (found["count"], found["cells"]) == (count, cells)
    assert found["plan"]["view"][1] * found["plan"]["view"][3] == count
    assert found["plan"]["view"][0] * found["plan"]["view"][2] == cells
    names = run(shown(pattern=pattern, **change)["code"]["layer"])
    assert names["y"].shape == tuple(shape)


def test_the_sum_of_a_statistic_is_over_the_elements_of_a_cell():
    mean, var = shown(method="group_norm")["statistics"]
    assert mean == {
        "symbol": "mean", "of": "value", "root": False, "count": 18,
        "all": ["b", "g", "c", "h", "w"], "kept": ["b", "g"], "reduced": ["c", "h", "w"],
    }  # fmt: skip
    assert (var["symbol"], var["of"]) == ("var", "deviation")
    (square,) = shown(method="rms_norm", pattern="... [c]")["statistics"]
    assert (square["symbol"], square["reduced"]) == ("mean(x²)", ["c"])
    assert shown()["formula"] == "y = (x - mean) / sqrt(var + eps) * weight + bias"
    assert shown(pattern="[...]")["formula"] == "y = (x - mean) / sqrt(var + eps)"


def test_drawn_elements_are_elements_of_the_tensor():
    sizes = {"batch": 32, "channels": [256], "positions": [14, 14], "groups": 32}
    found = shown(**sizes)["found"]
    for name, size, drawn in (("samples", 32, 8), ("channels", 256, 16), ("positions", 196, 16)):
        side = found["sides"][name]
        assert side["size"] == size
        assert not side["whole"]
        assert len(side["places"]) == drawn
        limits = [found["levels"][level]["size"] for level in side["own"]]
        assert all(index < limit for place in side["places"] for index, limit in zip(place, limits, strict=True))


def test_memory_and_weights_are_those_of_the_tensor():
    """The pictures of memory say where an element of the tensor is, and which weight it gets."""
    ask = """state => { const found = nk.describe(state);
      const all = [...Array(found.total).keys()];
      return { names: found.levels.map(l => l.size), at: all.map(offset => nk.elementAt(found, offset)),
               back: all.map(offset => nk.offsetOf(found, nk.elementAt(found, offset))) }; }"""
    for layout in ("contiguous", "channels_last"):
        (found,) = answers(ask, [START | {"layout": layout}])
        total = math.prod(found["names"])
        assert found["back"] == list(range(total))
        x = torch.arange(total).reshape((3, 2, 3, 6) if layout == "channels_last" else (3, 6, 2, 3))
        x = x.permute(0, 3, 1, 2) if layout == "channels_last" else x
        split = x.reshape(found["names"]) if layout == "contiguous" else x.unflatten(1, (2, 3))
        assert [int(split[tuple(index)]) for index in found["at"]] == list(range(total))
    assert torch.equal(functional.normalize(x.float(), "b c [...]"), functional.instance_norm(x.float()))


def test_a_link_holds_the_whole_state():
    states = [
        START | {"method": "group_norm"},
        START | {"method": "layer_norm", "pattern": "... [c]", "positions": [], "layout": "channels_last"},
        START | {"method": "weight_norm", "pattern": ""},
        START | {"pattern": "b [c] é=2 & 100% #", "channels": [2, 3], "positions": [1, 16384, 7]},
    ]
    ask = "state => [nk.toHash(state), nk.fromHash(nk.toHash(state), {})]"
    for state, (hash_, back) in zip(states, answers(ask, states), strict=True):
        assert back == state
        assert hash_.startswith("#p=")


@pytest.mark.parametrize(
    ("hash_", "change"),
    [
        ("", None),
        ("#the-plan", None),
        ("#p=[b]+c+[...]", {"method": "batch_norm", "pattern": "[b] c [...]"}),
        ("#m=rms_norm", {"method": "rms_norm", "pattern": "... [c]"}),
        ("#p=b+[c]+%&c=2×3", {"pattern": "b [c] %", "channels": [2, 3]}),
        ("#p=b+c+[...]&m=group_norm", {"method": "instance_norm", "pattern": "b c [...]"}),
        ("#p=b&b=0&c=x&x=1x2x3x4x5&g=99999999&layout=no", {"pattern": "b"}),
    ],
)
def test_a_link_that_is_not_whole_keeps_the_rest(hash_: str, change: dict[str, Any] | None):
    (back,) = answers(f"hash => nk.fromHash(hash, {json.dumps(START)})", [hash_])
    assert back == (None if change is None else START | change)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("4", [4]), ("2×3", [2, 3]), ("2 x 3", [2, 3]), ("2,3,4", [2, 3, 4]), ("", []), ("0", None), ("a", None),
     ("-1", None), ("1.5", None), ("16384", [16384]), ("16385", None), ("1 2 3 4 5", None), ("007", None)],
)  # fmt: skip
def test_sizes_are_read(text: str, sizes: list[int] | None):
    assert answers("text => nk.readSizes(text)", [text]) == [sizes]


def test_every_text_is_there_in_both_languages():
    (texts,) = answers("() => nk.TEXTS", [None])
    for name, pair in texts.items():
        english, chinese = pair
        assert english.strip(), name
        assert chinese.strip(), name
        assert set(_values(english)) == set(_values(chinese)), name
    used = (FOLDER / "explorer.js").read_text(encoding="utf-8")
    assert [
        name for name in texts if f'"{name}"' not in used and f"{name}:" not in used and not name.startswith("drawn")
    ] == []


def _values(text: str) -> list[str]:
    return [part.split("}")[0] for part in text.split("{")[1:]]
