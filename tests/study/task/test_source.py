"""Which edits of a task discard stored runs: all that a result may depend on, in any form, and nothing else."""

import os
import random
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from normkit.study.task import Task
from normkit.study.task.source import digest_of_fields, seeded
from normkit.study.task.source.walk import Walk

MODULE = """
import enum
import functools
import random
import threading
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 8
NAMES = {"one", "two", "three", "four"}
TABLE = {"slope": [0.1, 0.2], "shift": (1, 2)}
LOCK = threading.Lock()
WEIGHT = torch.ones(3)

class Kind(enum.Enum):
    PLAIN = 1

class Base(nn.Module):
    @property
    def scale(self):
        return 2.0

    def forward(self, x):
        return self.scale * self.tail(x)

class Net(Base):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, width(1))

    def tail(self, x):
        return self.head(x) if x in {"p", "q", "r"} else [f(x) for f in (F.relu, lambda x: x + 3)]

    @staticmethod
    def head(x):
        return x

@functools.lru_cache
def width(factor=1):
    return WIDTH * factor

class Focal:
    def __init__(self, gamma):
        self.gamma = gamma

    def __call__(self, outputs, targets):
        with LOCK:
            return (outputs - targets).pow(self.gamma).mean() * TABLE["slope"][0]

def clipped(parameters, lr, *, decay=0.01):
    return torch.optim.SGD(parameters, lr, weight_decay=decay)

def optimizer(parameters, lr):
    return clipped(list(parameters), lr)

def scaled(factor):
    def metric(outputs, targets):
        return factor * (outputs - targets).abs().mean()
    return metric

@torch.no_grad()
def probe(model):
    import math
    return {"x": math.pi if random.random() + np.random.rand() < 0 else len(NAMES), "kind": Kind.PLAIN.value}

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

FIELDS = {
    "model": lambda: Net(),
    "loss": Focal(2),
    "metric": scaled(3.0),
    "optimizer": optimizer,
    "probe": probe,
    "bound": Focal(2).__call__,
    "part": functools.partial(clipped, decay=0.1),
    "weighted": nn.CrossEntropyLoss(WEIGHT),
    "recursive": even,
    "options": TABLE,
}
"""


def fields_of(source: str) -> dict[str, Any]:
    """The fields of an edited module, as a notebook or `exec` defines them: there is no file."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), space)
    return dict(space["FIELDS"])


BEFORE = digest_of_fields(fields_of(MODULE))

EDITS = [
    # The class that `lambda: Net()` makes, its bases, helpers and constants.
    ("nn.Linear(4, ", "nn.Linear(5, "),
    ("return 2.0", "return 2.5"),
    ("F.relu, ", "F.gelu, "),
    ("x + 3)", "x + 4)"),
    ('"p", "q"', '"p", "s"'),
    ("class Net(Base)", "class Net(Base, threading.local)"),
    ("WIDTH = 8", "WIDTH = 16"),
    ("width(factor=1)", "width(factor=2)"),
    ("WIDTH * factor", "WIDTH + factor"),
    ('"three", ', '"tree", '),
    ("[0.1, 0.2]", "[0.1, 0.3]"),
    ("torch.ones(3)", "torch.zeros(3)"),
    ("PLAIN = 1", "PLAIN = 2"),
    # Helpers, closures, defaults, bound values and attributes of the functions.
    ("torch.optim.SGD", "torch.optim.Adam"),
    ("decay=0.01", "decay=0.02"),
    ("decay=0.1)", "decay=0.2)"),
    ("scaled(3.0)", "scaled(4.0)"),
    ('"loss": Focal(2)', '"loss": Focal(3)'),
    ('"bound": Focal(2)', '"bound": Focal(3)'),
    (".pow(self.gamma)", ".mul(self.gamma)"),
    ("math.pi", "math.e"),
    ("n == 0 or odd", "n == 1 or odd"),
    ("n != 0 and", "n > 0 and"),
    ("@torch.no_grad()", "@torch.enable_grad()"),
    ("(WEIGHT)", "(WEIGHT, label_smoothing=0.1)"),
]


@pytest.mark.parametrize(("old", "new"), EDITS, ids=[new for _, new in EDITS])
def test_an_edit_of_anything_that_is_reached_counts(old: str, new: str) -> None:
    assert MODULE.count(old) == 1
    assert digest_of_fields(fields_of(MODULE.replace(old, new))) != BEFORE


@pytest.mark.parametrize(
    ("old", "new"),
    [("WIDTH = 8", "# a comment\n\nWIDTH = 8  # and another"), ("class Kind", "def unused():\n    pass\n\nclass Kind")],
)
def test_comments_lines_and_functions_that_are_not_used_do_not_count(old: str, new: str) -> None:
    assert digest_of_fields(fields_of(MODULE.replace(old, new))) == BEFORE


def test_calls_before_do_not_count() -> None:
    fields = fields_of(MODULE)
    space = fields["probe"].__wrapped__.__globals__
    space["width"](2)
    space["random"].random()
    np.random.rand()
    assert digest_of_fields(fields) == BEFORE


def test_the_digest_is_the_same_in_every_process_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    code = "import mine; from normkit.study.task.source import digest_of_fields as d; print(d(mine.FIELDS))"
    # The file has another name and other lines than the text that was executed here, and another order of sets.
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == BEFORE


def test_helpers_of_other_modules_count_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(source: str, use: str) -> str:
        helpers = types.ModuleType("helpers")
        helpers.__file__ = __file__
        monkeypatch.setitem(sys.modules, "helpers", helpers)
        exec(source, helpers.__dict__)
        space: dict[str, Any] = {"__name__": "__main__", "helpers": helpers}
        exec(use, space)
        return digest_of_fields({"optimizer": space["f"]})

    source = "def make(lr):\n    return lr * RATE\nRATE = 1.0\nOTHER = 2.0"
    for use in (
        "def f(lr):\n    return helpers.make(lr)",
        "def f(lr):\n    from helpers import make\n    return make(lr)",
        "def f(lr):\n    import helpers as h\n    return h.make(lr)",
    ):
        before = digest(source, use)
        assert digest(source, use) == before
        assert digest(source.replace("1.0", "1.5"), use) != before, use
        assert digest(source.replace("OTHER = 2.0", "OTHER = 3.0"), use) == before, use


def test_chains_and_rings_are_longer_than_the_stack() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    count = 3 * sys.getrecursionlimit()
    exec("\n".join(f"def f{i}(): return f{(i + 1) % count}()" for i in range(count)), space)
    nested: list[Any] = []
    for _ in range(count):
        nested = [nested, threading.Lock()]
    ring: list[Any] = [nested]
    ring.append(ring)
    assert digest_of_fields({"f": space["f0"], "r": ring}) == digest_of_fields({"f": space["f0"], "r": ring})


class Weighted(nn.Module):
    """A loss with a state of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(2000))
        self.factor, self.scale = nn.Parameter(torch.ones(1)), 1.0
        self.register_forward_hook(lambda *_: None)


def test_weights_of_a_loss_count() -> None:
    def change(name: str, value: Any) -> Weighted:
        made = Weighted()
        if isinstance(value, (int, float)):
            setattr(made, name, value)
        else:
            value(getattr(made, name))
        return made

    before = digest_of_fields({"loss": Weighted()})
    assert digest_of_fields({"loss": Weighted()}) == before
    changes = [
        change("weight", lambda t: t[1000].fill_(2.0)),
        change("factor", lambda t: t.data.fill_(2.0)),
        change("scale", 2.0),
    ]
    assert len({before, *(digest_of_fields({"loss": each}) for each in changes)}) == 4


def reads_a_generator(numbers: Iterator[int]) -> Callable[[], int]:
    return lambda: next(numbers)


def logging(outputs: Tensor, targets: Tensor) -> Tensor:
    print(outputs, file=STREAM)
    return F.cross_entropy(outputs, targets)


@pytest.fixture(scope="module", autouse=True)
def close() -> Iterator[None]:
    yield
    STREAM.close()


STREAM = open(os.devnull, "w")  # noqa: SIM115


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (logging, r"may depend on test_source.STREAM, whose state cannot be read \(_io.TextIOWrapper: cannot pickle"),
        (
            reads_a_generator(i for i in range(3)),
            r"depend on numbers in reads_a_generator.<locals>.<lambda>, whose .*\(generator: ",
        ),
        (partial(max, {object(), object()}), r"the order of its elements differs between processes"),
    ],
)
def test_a_state_that_cannot_be_read_is_named_and_never_reused(function: Any, message: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"a later call cannot reuse the results of this one.*{message}"):
        first = digest_of_fields({"loss": function})
    with pytest.warns(RuntimeWarning, match="cannot reuse"):
        assert digest_of_fields({"loss": function}) != first


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiled_and_scripted_models_count_by_what_they_were_made_of() -> None:
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    compiled = torch.compile(layer)
    assert digest_of_fields({"f": torch.compile(layer)}) == digest_of_fields({"f": compiled})
    assert digest_of_fields({"f": torch.compile(other)}) != digest_of_fields({"f": compiled})
    scripted = torch.jit.script(layer)
    assert digest_of_fields({"f": torch.jit.script(layer)}) == digest_of_fields({"f": scripted})
    assert digest_of_fields({"f": torch.jit.script(other)}) != digest_of_fields({"f": scripted})
    assert digest_of_fields({"f": re.compile("a")}) != digest_of_fields({"f": re.compile("b")})


def test_ranks_of_one_torchrun_share_what_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with pytest.warns(RuntimeWarning, match="cannot reuse"):
        first, second = (digest_of_fields({"loss": logging}) for _ in range(2))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    with pytest.warns(RuntimeWarning, match="cannot reuse"):
        assert first == second != digest_of_fields({"loss": logging})


# Data


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from all generators, and a cache that grows."""

    def __init__(self, noise: float = 0.1, images: int = 40, level: float = 0.0) -> None:
        self.noise, self.images, self.level = noise, images, level
        self.cache: dict[int, int] = {}
        self._opened: Any = None

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.cache[index] = index
        self._opened = STREAM
        noise = torch.randn(3) + random.random() + torch.from_numpy(np.random.rand(3))
        return (self.level + index + self.noise * noise).float(), torch.tensor(index % 3)


class Unseeded(Augmented):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(np.random.default_rng().random(3)), torch.tensor(index % 3)


def fingerprint(data: Dataset[Any]) -> str:
    return Task(lambda: nn.Linear(3, 3), data, data).fingerprint()


def test_augmentation_does_not_count_and_changes_no_random_number() -> None:
    data = Augmented()
    task = Task(lambda: nn.Linear(3, 3), data, data)

    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), random.random(), np.random.rand()

    with seeded():
        expected = draw()
    with seeded():
        before = task.fingerprint()
        assert draw() == expected
    assert fingerprint(data) == fingerprint(Augmented()) == before
    assert len({before, *map(fingerprint, (Augmented(0.2), Augmented(images=41), Augmented(level=1.0)))}) == 4


def test_samples_that_no_seed_fixes_are_named_and_the_rest_counts() -> None:
    with pytest.warns(RuntimeWarning, match="samples of Unseeded are random even with fixed seeds"):
        before = fingerprint(Unseeded())
    with pytest.warns(RuntimeWarning, match="draw random numbers from one of these generators"):
        assert fingerprint(Unseeded()) == before
    with pytest.warns(RuntimeWarning, match="are random even with"):
        assert fingerprint(Unseeded(noise=0.2)) != before


def test_an_error_restores_the_generators() -> None:
    before = random.getstate()
    with suppress(ZeroDivisionError), seeded():
        raise ZeroDivisionError
    assert random.getstate() == before


def test_a_walk_shows_what_it_could_not_read() -> None:
    walk = Walk()
    walk.add("loss", logging)
    assert list(walk.unknown) == ["test_source.STREAM"]
