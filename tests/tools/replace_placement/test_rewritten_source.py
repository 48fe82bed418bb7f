"""Methods of every form are rewritten, or refused with the reason."""

import functools
import inspect
import math
import pickle

import pytest
import torch
from placed_blocks import Block, Branch, Net, Pre, randomised
from torch import nn

import normkit

X = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def counted(method):
    """A decorator as libraries use them."""

    @functools.wraps(method)
    def with_count(self, *args, **kwargs):
        self.count = getattr(self, "count", 0) + 1
        return method(self, *args, **kwargs)

    return with_count


class Decorated(Block):
    @counted
    def forward(self, x, *, scale: "float" = 1.0, unused=math.inf):
        """Says what it does."""
        text = "äöü — x + y"; x = x + self.mlp(self.norm1(x)) * scale  # fmt: skip  # noqa: E702
        assert text.startswith("ä")
        assert unused == math.inf
        return x


class Spread(Block):
    """One expression over several lines, a named argument, and a subscript."""

    def __init__(self, **options):
        super().__init__(**options)
        self.parts = nn.ModuleList([self.norm1, self.norm2])

    def forward(self, x):
        x = (
            self.mixer(
                self.parts[0](input=x),
            )
            + x
        )
        return torch.add(
            x,
            self.mlp(
                self.norm2(
                    x,
                )
            ),
        )


class Superior(Block):
    def forward(self, x):
        assert not super().extra_repr()
        return x + self.mlp(self.norm1(x))


class Inherited(Superior):
    pass


class InPieces(Block):
    """The sum is in a method of its own."""

    def forward(self, x):
        return self.second(self.first(x))

    def first(self, x):
        return x + self.mixer(self.norm1(x))

    def second(self, x):
        return x + self.mlp(self.norm2(x))


class Scaled(Block):
    """Scales of each form at the end of the branch, and dropout."""

    def __init__(self, **options):
        super().__init__(**options)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x):
        y = self.mixer(self.norm1(x))
        x = x + y * 2
        y = self.mlp(self.norm2(x))
        return x + nn.functional.dropout(self.gain * (2 * y), 0.1, self.training)


def around(factor):
    class Closed(Block):
        def forward(self, x):
            return x + factor * self.mlp(self.norm1(x))

    return Closed


@pytest.mark.parametrize(
    "block", [Decorated, Spread, Superior, Inherited, InPieces, Scaled, around(0.5)], ids=lambda b: b.__name__
)
@pytest.mark.parametrize("to", ["post", "sandwich"])
def test_forms_of_methods(block, to):
    torch.manual_seed(0)
    new, report = normkit.replace_placement(Net(block).double(), to, example=X)
    assert not report.refusals
    randomised(new).eval()
    y = new.embed(X)
    factor = 0.5 if block.__name__ == "Closed" else 1.0
    for each in new.blocks:
        pairs = [(each.norm1, each.mixer, "norm1"), (each.norm2, each.mlp, "norm2")]
        pairs = pairs if block in (Spread, InPieces, Scaled) else [(each.norm1, each.mlp, "norm1")]
        for norm, branch, name in pairs:
            if block is Scaled:
                factor = 2 if name == "norm1" else 2 * each.gain
            if to == "post":
                y = norm(y + factor * branch(y))
            else:
                y = y + factor * getattr(each, f"{name}_output")(branch(norm(y)))
    y = new.head(y if to == "post" else new.norm(y))
    # Float64, the same operations.
    torch.testing.assert_close(new(X), y, rtol=1e-12, atol=1e-12)


def test_decorators_and_defaults_stay():
    torch.manual_seed(0)
    new, _ = normkit.replace_placement(Net(Decorated).double(), "post", example=X)
    block = new.blocks[0]
    block.count = 0
    new(X)
    assert block.count == 1
    assert inspect.signature(block.forward).parameters["unused"].default == math.inf
    assert type(block).forward.__doc__ == "Says what it does."


def test_the_text_can_be_read_and_equal_changes_share_a_class():
    new, _ = normkit.replace_placement(Net(Pre, depth=4).double(), "post", example=X)
    text = inspect.getsource(type(new.blocks[1]).forward)
    assert "x = self.norm1(x + self.drop(self.mixer(h)))" in text
    assert len({type(block) for block in new.blocks}) == 1
    assert pickle.loads(pickle.dumps(new.blocks[2])).state_dict().keys() == new.blocks[2].state_dict().keys()


class Private(Block):
    def forward(self, x):
        return x + self.__call_branch(self.norm1(x))

    def __call_branch(self, h):
        return self.mlp(h)


class OverSuper(Superior):
    def forward(self, x):
        return super().forward(x)


def helper(a, b):
    return a + b


class ByHelper(Block):
    def forward(self, x):
        return helper(x, self.mlp(self.norm1(x)))


class Aliased(Block):
    def forward(self, x):
        norm = self.norm1
        return x + self.mlp(norm(x))


class Elsewhere(Block):
    """The norm belongs to another module than the sum."""

    def __init__(self, **options):
        super().__init__(**options)
        self.adder = Adder()

    def forward(self, x):
        return self.adder(x, self.norm1(x))


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = Branch()

    def forward(self, x, h):
        return x + self.branch(h)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Private, "Private.forward uses the private name __call_branch"),
        (OverSuper, "OverSuper.forward is called by super(), so that it cannot be replaced alone"),
        (ByHelper, "ByHelper.forward adds or scales in a way that is not understood"),
        (Aliased, "Aliased.forward does not call its LayerNorm by name"),
        (Elsewhere, "its LayerNorm is not part of Adder, which would have to call it"),
    ],
)
def test_refused_forms(block, reason):
    torch.manual_seed(0)
    model = Net(block).double()
    _, report = normkit.replace_placement(model, "post", example=X)
    assert not report.blocks
    assert reason in {row.reason for row in report.refusals}


def test_code_without_source_is_refused():
    code = """
class Unread(Block):
    def forward(self, x):
        return x + self.mlp(self.norm1(x))
"""
    made = {"Block": Block, "__name__": __name__}
    exec(code, made)
    torch.manual_seed(0)
    _, report = normkit.replace_placement(Net(made["Unread"]).double(), "post", example=X)
    assert "the source of Unread.forward cannot be read: define the class in a file" in str(report)


class ReadTwice(Block):
    """The input of the branch is read first by what runs last."""

    def forward(self, x):
        x = self.norm1(x + self.mix(x, self.mlp(x)))
        return self.norm2(x + self.mlp(x))

    def mix(self, x, y):
        return self.mixer(x) + y


def test_an_input_that_is_read_twice_is_normalized_once():
    torch.manual_seed(0)
    new, report = normkit.replace_placement(Net(ReadTwice, final=False).double(), "pre", example=X)
    assert not report.refusals
    y = randomised(new).eval().embed(X)
    for block in new.blocks:
        h = block.norm1(y)
        y = y + (block.mixer(h) + block.mlp(h))
        y = y + block.mlp(block.norm2(y))
    y = new.head(new.blocks[-1].final_norm(y))
    # Float64, the same operations.
    torch.testing.assert_close(new(X), y, rtol=1e-12, atol=1e-12)
    calls = []
    new.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    new(X)
    assert len(calls) == 1
