"""Findings of `audit`: each rule on its examples, what it leaves alone, how it is told, and what it refuses."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from benchmarks import audit_pages
from benchmarks.harm.chinese import SENTENCES
from benchmarks.speed.measure import RESULTS
from torch import nn
from torch.nn import functional as F

import normkit
from normkit.errors import ArgumentError, DtypeError, StateError
from normkit.tools.audit import examples
from normkit.tools.audit.measure.moments import moments, padded_share
from normkit.tools.audit.rules import RULES
from normkit.tools.audit.rules.chinese import CHINESE

TREES = Path(__file__).parents[3] / "docs"
DOCS = TREES / "en" / "audit"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d[\d.]*(?:e-?\d+)?(?<!\.)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*\([^)]*\)|arXiv:[\d.]+|[\w-]+/[\w-]+#\d+")


@pytest.mark.parametrize("code", RULES)
def test_a_rule_trips_on_its_example_and_not_on_the_other(code):
    assert code in audit_pages.EXAMPLES[f"{code}_trips"]().codes
    assert code not in audit_pages.EXAMPLES[f"{code}_clean"]().codes


@pytest.mark.parametrize("code", RULES)
def test_the_code_of_a_page_does_what_the_page_says(code):
    trips, _, clean = CODE.findall((DOCS / f"{code}.md").read_text(encoding="utf-8"))
    for text, found in ((trips, True), (clean, False)):
        names = {"__name__": "example"}
        exec(compile(text, code, "exec"), names)
        assert (code in names["report"].codes) is found


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_pages_are_up_to_date(lang):
    made, folder = audit_pages.pages(lang), TREES / lang / "audit"
    assert {path.name for path in folder.glob("*.md")} == set(made), "run: python -m benchmarks.audit_pages"
    for name, text in made.items():
        assert (folder / name).read_text(encoding="utf-8") == text, "run: python -m benchmarks.audit_pages"


def test_every_rule_is_in_chinese():
    assert set(CHINESE) == set(RULES), "src/normkit/tools/audit/rules/chinese.py"
    assert set(SENTENCES) == set(RULES), "benchmarks/harm/chinese.py"


@pytest.mark.parametrize("code", RULES)
def test_chinese_has_the_names_and_numbers_of_the_english(code):
    measured = json.loads((RESULTS / "audit_harm.json").read_text(encoding="utf-8"))["rules"][code]
    texts = [RULES[code].words(lang) for lang in ("en", "zh")]
    harms = [audit_pages.harm(code, lang, measured) for lang in ("en", "zh")]
    assert all(re.search("[\u4e00-\u9fff]", text) for text in (*texts[1][:3], harms[1]))
    for pattern, (english, chinese) in [(NAME, map(" ".join, texts)), (NUMBER, map(" ".join, texts)), (NUMBER, harms)]:
        assert sorted(pattern.findall(chinese)) == sorted(pattern.findall(english))
    raised = measured["numbers"].get("raises")
    assert raised is None or (raised and all(raised in harm for harm in harms))


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU())


class Raises(nn.Module):
    def forward(self, x):
        raise ValueError("wrong")


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(raises, training):
    model = nn.Sequential(small(), nn.Sequential(nn.BatchNorm2d(8), nn.Dropout()).eval()).train(training)
    model[0](torch.randn(4, 3, 8, 8)).sum().backward()
    if raises:
        model.append(Raises())
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model[0].parameters()]
    chance = torch.get_rng_state()
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    if raises:
        with pytest.raises(ArgumentError, match="ValueError: wrong"):
            normkit.audit(model, x)
    else:
        normkit.audit(model, x, loader=[x, (x, None)])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model[0].parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), chance)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_feeds_what_comes_from_the_run_and_not_from_the_order():
    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.conv(x) + self.norm(self.other(x).contiguous())

    report = normkit.audit(Crossed(), torch.randn(4, 3, 8, 8))
    assert [f.module for f in report.findings if f.code == "NK101"] == ["other"]


def test_a_bias_that_is_used_elsewhere_is_not_redundant():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    assert "NK101" not in normkit.audit(Forked(), torch.randn(4, 3, 8, 8)).codes


def test_rules_that_could_not_run_say_why():
    reasons = {skipped.code: skipped.reason for skipped in normkit.audit(small()).not_run}
    assert reasons["NK101"] == "no example is given"
    assert reasons["NK401"] == "no optimizer is given"
    assert reasons["NK403"] == "world_size is 1"
    lazy = normkit.audit(nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)), torch.randn(4, 3))
    assert "0 is lazy: run one batch first" in str(lazy)
    norms = nn.Sequential(nn.LazyBatchNorm2d(), nn.LazyInstanceNorm1d(track_running_stats=True), nn.BatchNorm2d(8))
    lazy = normkit.audit(norms, torch.randn(4, 3, 8, 8), per_sample=True)
    assert [(f.code, f.module) for f in lazy.findings] == [("NK301", ""), ("NK404", "0"), ("NK404", "2")]


def test_a_norm_that_refuses_its_region_is_a_finding_and_not_an_error():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(3))
    report = normkit.audit(model, torch.randn(1, 3, 8, 8))
    assert [f.module for f in report.findings] == ["1"]
    assert report.codes == {"NK202"}


def test_loader_alone_serves_as_example():
    model = examples.settled(nn.Sequential(nn.BatchNorm2d(3)), torch.randn(8, 3, 8, 8))
    batches = [(50 + torch.randn(4, 3, 8, 8), 0) for _ in range(3)]
    (finding,) = (f for f in normkit.audit(model, loader=batches).findings if f.code == "NK302")
    assert finding.measured["share"] == 1
    assert "12 samples" in finding.message


def test_moments_merge_to_those_of_all_data():
    x = torch.randn(6, 3, 5) * 4 + 7
    merged = moments(x[:2]).with_(moments(x[2:]))
    whole = x.double().transpose(0, 1).flatten(1)
    # Float64 sums of 30 values of size 10.
    torch.testing.assert_close(merged.mean, whole.mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.var, whole.var(1, unbiased=False), rtol=1e-12, atol=0)
    assert (merged.count, merged.samples) == (30, 6)


def test_padding_is_told_from_constants_that_all_samples_share():
    x = torch.randn(3, 4, 10)
    x[..., 6:] = 0
    assert padded_share(x) == 0
    x[0, :, 3:] = 0
    assert padded_share(x) > 0.4


class Frames(nn.Module):
    """Folds the frames of a clip into the batch, as video nets do."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, clip):
        return self.norm(clip.flatten(0, 1))


def test_frames_folded_into_the_batch_count_as_elements():
    (finding,) = (f for f in normkit.audit(Frames(), torch.randn(4, 3, 8), batch_size=2).findings if f.code == "NK201")
    assert finding.measured == {"elements": 6, "samples": 2, "positions": 3}
    assert "NK201" not in normkit.audit(Frames(), torch.randn(4, 3, 8), batch_size=6).codes


def test_inputs_of_every_form_and_wrapped_models():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), normkit.BatchNorm2d(8))
    x = torch.randn(4, 3, 8, 8)
    wrapped = torch.compile(model, backend="eager")
    found = [
        [f.module for f in normkit.audit(*given).findings]
        for given in ((model, (x,)), (model, {"input": x}), (wrapped, x))
    ]
    assert found == [["0", ""]] * 3


def test_functions_between_modules_are_seen():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(F.dropout(F.relu(self.conv(x), inplace=True), 0.25, self.training))

    report = normkit.audit(Functions(), torch.randn(4, 3, 8, 8))
    (finding,) = (f for f in report.findings if f.code == "NK104")
    assert finding.measured == {"dropout": "dropout", "p": 0.25}


def test_suppression_by_code_by_name_and_on_the_module():
    model, x = nn.Sequential(small(), small()[:2]), torch.randn(4, 3, 8, 8)
    model[1][0] = nn.Conv2d(8, 8, 3)
    assert len([f for f in normkit.audit(model, x).findings if f.code == "NK101"]) == 2
    report = normkit.audit(model, x, ignore={"NK101"})
    assert "NK101" not in report.codes
    assert len(report.suppressed) == 2
    by_name = normkit.audit(model, x, ignore={"1.*": {"NK101"}})
    assert [f.module for f in by_name.findings if f.code == "NK101"] == ["0.0"]
    model[0].normkit_ignore = ("NK101",)
    marked = normkit.audit(model, x)
    assert [f.module for f in marked.findings if f.code == "NK101"] == ["1.0"]


def test_report_as_text_json_and_sarif():
    report = examples.NK102_trips()
    assert "NK102 warning: two norms in a row" in str(report)
    assert json.loads(report.to_json())["findings"][0]["module"] == "2"
    chinese = report.text("zh")
    assert "NK102 warning: 两个归一化层相连" in chinese
    assert "  修正：只保留其中一个。" in chinese
    run = report.to_sarif()["runs"][0]
    assert [result["ruleId"] for result in run["results"]] == ["NK102"]
    assert run["tool"]["driver"]["rules"][run["results"][0]["ruleIndex"]]["id"] == "NK102"
    assert run["results"][0]["level"] == "warning"
    assert (report.exit_code(), report.exit_code("error"), report.exit_code("never")) == (1, 0, 0)
    with pytest.raises(ArgumentError, match="did you mean 'warning'"):
        report.exit_code("warnin")


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"model": 3}, DtypeError, "must be a torch.nn.Module, got int"),
        ({"ignore": {"NK11"}}, ArgumentError, "got 'NK11': did you mean"),
        ({"ignore": 3}, DtypeError, "must be codes of rules, got 3"),
        ({"batch_size": 0}, ArgumentError, "batch_size must be at least 1, got 0"),
        ({"world_size": 1.5}, ArgumentError, "world_size must be a whole number"),
        ({"optimizer": "sgd"}, DtypeError, "must be a torch.optim.Optimizer, got str"),
        (
            {"example": torch.randn(4, 5, 8, 8)},
            ArgumentError,
            r"for \(4, 5, 8, 8\)\ngive what the model is called with",
        ),
        ({"loader": []}, ArgumentError, "at least one batch, got none"),
        ({"loader": [()]}, ArgumentError, "must hold an input"),
    ],
)
def test_bad_arguments(arguments, kind, text):
    with pytest.raises(kind, match=text):
        normkit.audit(**{"model": small(), **arguments})


def test_a_scripted_model_is_refused():
    with warnings.catch_warnings():
        # torch.jit is deprecated, and models made with it are still about.
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(StateError, match="before it is scripted"):
        normkit.audit(model)


def test_a_train_of_its_own_restores_the_mode():
    class Merging(nn.Module):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

        def forward(self, x):
            return x

    model = Merging().train()
    normkit.audit(model, torch.randn(2, 3))
    assert (model.training, model.merged) == (True, False)


def test_state_of_any_kind_is_put_back():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("expanded", torch.zeros(1).expand(4))
            self.register_buffer("nan", torch.full((2,), float("nan")))
            self.register_buffer("complex", torch.zeros(2, dtype=torch.complex64))
            self.register_buffer("none", None)
            self.register_buffer("counter", torch.zeros(1))

        def forward(self, x):
            self.register_buffer("cache", x)
            self.counter += 1
            return x

    model = Odd()
    normkit.audit(model, torch.randn(2, 3))
    assert float(model.counter) == 0
    assert set(model._buffers) == {"expanded", "nan", "complex", "none", "counter"}
