"""The command line of `audit`: what it takes, from where, what it answers, and how it refuses."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from normkit import cli
from normkit.errors import ArgumentError, DtypeError
from normkit.tools.load import example_of, load

FILE = """import torch
from torch import nn

number = 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(8, 8), 2.0
        self.norm = nn.Sequential(
            nn.LayerNorm(8),
            nn.LayerNorm(8),
        )

    def forward(self, x):
        return self.norm(self.layer(x))


def make():
    return nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8))


def blocks():
    return nn.ModuleDict({"a": Block()})["a"]


def raises():
    raise KeyError("weights")


def language():
    return nn.Sequential(nn.Embedding(50, 8), nn.LayerNorm(8), nn.LayerNorm(8))


def infinite():
    return nn.Sequential(nn.BatchNorm2d(3)), torch.full((4, 3, 8, 8), float("inf"))


def trained():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    model(torch.randn(64, 3, 4, 4) * 9 + 5)
    return model


def batches():
    return [(torch.randn(8, 3, 4, 4) * 9 + 5, None) for _ in range(3)]


def broken_batches():
    yield torch.randn(8, 3, 4, 4)
    raise OSError("disk")


def optimizer(model):
    return torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "audited_net.py").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("audited_net", "audited_net_of_deeper", "math_of_deeper"):
        sys.modules.pop(name, None)


def command(*words, code=0):
    result = CliRunner().invoke(cli.app, ["audit", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def places(*words, code=1):
    """Code and module of each finding."""
    report = json.loads(command(*words, "--format", "json", code=code), parse_constant=pytest.fail)
    return [(f["code"], f["module"]) for f in report["findings"]]


def test_command_line():
    assert "NK102 warning" in command("audited_net:make", "--shape", "2,8", code=1)
    assert "两个归一化层相连" in command("audited_net:make", "--shape", "2,8", "--lang", "zh", code=1)
    assert "not run" in command("audited_net:make")
    assert json.loads(command("audited_net:make", "--format", "sarif"))["version"] == "2.1.0"
    assert json.loads(command("audited_net:make", "--shape", "2,8", "--format", "json", "--ignore", "NK102"))
    assert command("audited_net:make", "--shape", "2,8", "--fail-on", "error")
    assert "got 'xml'" in command("audited_net:make", "--format", "xml", code=2)
    assert "got 'bad'" in command("audited_net:make", "--fail-on", "bad", code=2)
    assert "must be importable, got ModuleNotFoundError" in command("no_such_net:make", code=2)
    assert "did you mean 'make'" in command("audited_net:mak", code=2)
    assert "write for instance nets:make" in command("audited_net", code=2)
    with pytest.raises(DtypeError, match="got int: return the model from the factory"):
        load("audited_net:number")
    with pytest.raises(ArgumentError, match="got '2,a': write 2,3,64,64"):
        example_of("2,a")


def test_a_file_is_named_by_its_path(folder):
    assert places("audited_net.py:make", "--shape", "2,8") == [("NK102", "1")]
    deeper = folder / "deeper"
    deeper.mkdir()
    # Under the name of a module that is there already, and with a neighbour.
    (deeper / "audited_net.py").write_text("from neighbour import make\n", encoding="utf-8")
    (deeper / "math.py").write_text(FILE, encoding="utf-8")
    (deeper / "neighbour.py").write_text("from torch import nn\ndef make(): return nn.GroupNorm(4, 4)\n", "utf-8")
    assert places("deeper/audited_net.py:make", "--shape", "2,4") == [("NK202", "")]
    assert places(str(deeper / "math.py") + ":make", "--shape", "2,8") == [("NK102", "1")]
    assert "got FileNotFoundError" in command("deeper/none.py:make", code=2)
    (folder / "wrong.py").write_text("1 / 0\n", encoding="utf-8")
    assert "must be importable, got ZeroDivisionError" in command("wrong.py:make", code=2)
    assert "wrong" not in sys.modules


def test_a_factory_that_raises_is_an_error_of_the_command():
    text = command("audited_net.py:raises", code=2)
    assert "audited_net.py:raises must return when it is called without arguments, got KeyError: 'weights'" in text
    line = FILE.splitlines().index('    raise KeyError("weights")') + 1
    assert f"audited_net.py, line {line}" in text
    assert "with a Sequential, got TypeError" in command(
        "audited_net.py:make", "--optimizer", "audited_net.py:raises", code=2
    )
    assert "loader must give batches, got OSError: disk" in command(
        "audited_net.py:trained", "--loader", "audited_net.py:broken_batches", code=2
    )


def test_tokens_are_whole_numbers():
    assert places("audited_net.py:language", "--shape", "2,8", "--tokens", "50") == [("NK102", "2")]
    ids = example_of("200,10", 50)
    assert ids.dtype == torch.int64
    assert (int(ids.min()), int(ids.max())) == (0, 49)
    assert "--tokens needs the shape of an example, got 50 alone" in command(
        "audited_net.py:language", "--tokens", "50", code=2
    )
    assert "tokens must be at least 1, got 0" in command(
        "audited_net.py:language", "--shape", "2,8", "--tokens", "0", code=2
    )


def test_loader_and_optimizer():
    loaded = ("audited_net.py:trained", "--loader", "audited_net.py:batches")
    assert places(*loaded, code=0) == []
    # Random numbers are nobody's data.
    assert places("audited_net.py:trained", "--shape", "8,3,4,4", code=0) == [("NK302", "0")]
    assert "--loader must name batches or a function that returns them, got int" in command(
        "audited_net.py:trained", "--loader", "audited_net.py:number", code=2
    )
    assert places("audited_net.py:make", "--optimizer", "audited_net.py:optimizer") == [("NK401", "0"), ("NK401", "1")]
    assert "must be a torch.optim.Optimizer, got int" in command(
        "audited_net.py:make", "--optimizer", "audited_net.py:number", code=2
    )


def test_ignores_by_module():
    given = ("audited_net.py:make", "--optimizer", "audited_net.py:optimizer", "--shape", "2,8")
    assert places(*given) == [("NK102", "1"), ("NK401", "0"), ("NK401", "1")]
    assert places(*given, "--ignore", "1:NK401, NK102") == [("NK401", "0")]
    assert places(*given, "--ignore", "?:NK401,1:NK102", code=0) == []
    assert "got 'NK11': did you mean" in command(*given, "--ignore", "1:NK11", code=2)


def test_a_baseline_takes_out_what_is_known(folder):
    given = ("audited_net.py:make", "--optimizer", "audited_net.py:optimizer")
    (folder / "known.json").write_text(command(*given, "--format", "json", code=1), encoding="utf-8")
    assert places(*given, "--baseline", "known.json", code=0) == []
    assert "suppressed: 2" in command(*given, "--baseline", "known.json")
    assert places(*given, "--shape", "2,8", "--baseline", "known.json") == [("NK102", "1")]
    milder = json.loads((folder / "known.json").read_text("utf-8"))
    milder["findings"][1]["severity"] = "info"
    (folder / "known.json").write_text(json.dumps(milder), encoding="utf-8")
    assert places(*given, "--baseline", "known.json") == [("NK401", "1")]
    milder["findings"][1]["severity"] = "mild"
    (folder / "known.json").write_text(json.dumps(milder), encoding="utf-8")
    assert "got 'mild'" in command(*given, "--baseline", "known.json", code=2)
    (folder / "known.json").write_text("[]", encoding="utf-8")
    for name in ("known.json", "none.json"):
        assert "--baseline must be a report of normkit audit --format json, got " + name in command(
            *given, "--baseline", name, code=2
        )


CONFIG = """[tool.normkit.audit]
target = "audited_net.py:make"
shape = [2, 8]
optimizer = "audited_net.py:optimizer"
fail-on = "error"

[tool.normkit.audit.ignore]
"0" = ["NK401"]
"""


def test_settings_of_a_file(folder):
    (folder / "pyproject.toml").write_text(CONFIG, encoding="utf-8")
    assert places(code=0) == [("NK102", "1"), ("NK401", "1")]
    # What is given counts more; what is ignored adds up.
    assert places("--fail-on", "warning", "--ignore", "NK102", code=1) == [("NK401", "1")]
    (folder / "other.toml").write_text(CONFIG.replace('"0" = ["NK401"]', '"*" = ["NK401", "NK102"]'), "utf-8")
    assert places("--config", "other.toml", code=0) == []
    (folder / "other.toml").write_text('[tool.normkit.audit]\nignore = ["NK401"]\n', encoding="utf-8")
    assert places("audited_net.py:make", "--shape", "2,8", "--config", "other.toml") == [("NK102", "1")]
    (folder / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    assert "needs a target, got none" in command(code=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.normkit]", "bad.toml must have a table [tool.normkit.audit], got none"),
        ("[tool.normkit.audit]\nshap = 3", "got 'shap': did you mean 'shape'?"),
        ("[tool.normkit.audit]\nbatch-size = '64'", "batch-size in bad.toml must be of type int, got '64'"),
        ("[tool.normkit.audit]\nper-sample = 1", "per-sample in bad.toml must be of type bool, got 1"),
        ("[tool.normkit.audit]\nignore = 'NK101'", "must be of type list or a table of lists, got 'NK101'"),
        ("[tool.normkit.audit.ignore]\na = 'NK101'", "must be of type list or a table of lists, got {'a': 'NK101'}"),
        ("[tool.normkit.audit]\nfail-on = 'warnin'", "got 'warnin': did you mean 'warning'?"),
        ("[tool.normkit.audit]\nlang = 'fr'", "--lang must be one of en, zh, got 'fr'"),
        ("[tool", "bad.toml must be a TOML file, got TOMLDecodeError"),
    ],
)
def test_settings_that_are_refused(folder, text, message):
    (folder / "bad.toml").write_text(text, encoding="utf-8")
    assert message in command("audited_net.py:make", "--config", "bad.toml", code=2)
    assert "none.toml must be a TOML file, got FileNotFoundError" in command("x:y", "--config", "none.toml", code=2)


def test_infinite_measurements_are_json():
    assert ("NK305", "0") in places("audited_net.py:infinite")
    text = command("audited_net.py:infinite", "--format", "sarif", code=1)
    results = json.loads(text, parse_constant=pytest.fail)["runs"][0]["results"]
    assert "Infinity" in [result["properties"].get("largest") for result in results]


def locations(*words):
    """File and line of each result, by its logical name."""
    run = json.loads(command(*words, "--format", "sarif", code=1))["runs"][0]
    found = {}
    for result in run["results"]:
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert physical["artifactLocation"].keys() == {"uri", "uriBaseId"}
        found[location["logicalLocations"][0]["fullyQualifiedName"]] = (
            physical["artifactLocation"]["uri"],
            physical["region"]["startLine"],
        )
    return found


def test_a_result_names_the_line_that_makes_its_module():
    lines = FILE.splitlines()
    assigned = lines.index("        self.norm = nn.Sequential(") + 1
    assert locations("audited_net.py:blocks", "--shape", "2,8") == {"Block.norm.1": ("audited_net.py", assigned)}
    assert f"norm.1 (audited_net.py:{assigned}): " in command("audited_net.py:blocks", "--shape", "2,8", code=1)
    # A model without a class of the user's is made by the factory.
    factory = lines.index("def make():") + 1
    assert locations("audited_net.py:make", "--shape", "2,8") == {"Sequential.1": ("audited_net.py", factory)}


def test_a_file_outside_the_folder_is_named_in_full(tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "far.py"
    other.write_text(FILE, encoding="utf-8")
    run = json.loads(command(f"{other}:make", "--shape", "2,8", "--format", "sarif", code=1))["runs"][0]
    artifact = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert artifact == {"uri": other.resolve().as_uri()}
    sys.modules.pop("far")
