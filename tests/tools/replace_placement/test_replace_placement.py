"""Placements against formulas written by hand, back to where they were, scales, reports, refusals."""

import copy
import json
import pickle

import pytest
import torch
from placed_blocks import KINDS, WIDTH, Branch, Net, Post, Pre, by_hand, made, randomised
from torch import nn

import normkit
from normkit.errors import ArgumentError, DtypeError, StateError

PLACEMENTS = ("pre", "post", "peri", "sandwich")
X = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def close(a, b):
    # A few dozen operations in float64 on values near 1, in another order.
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("to", PLACEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_model_computes_the_formula_of_its_placement(kind, to):
    new, report = normkit.replace_placement(made(kind), to, example=X)
    assert not report.refusals
    assert [row.before for row in report.blocks] == [kind] * 4
    assert {row.after for row in report.blocks} == {to}
    randomised(new).eval()
    close(new(X), by_hand(new, X, to, report))


@pytest.mark.parametrize("to", ["post", "peri", "sandwich"])
def test_there_and_back_is_the_original_with_its_initial_norms(to):
    model = made("pre").eval()
    there, _ = normkit.replace_placement(model, to, example=X, calibrate=False)
    back, _ = normkit.replace_placement(there, "pre", example=X, calibrate=False)
    assert back.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(back(X), model(X))
    assert not torch.equal(there(X), model(X))


def test_the_models_own_norms_are_preferred_to_new_ones_on_the_way_back():
    model = made("output").eval()
    there, _ = normkit.replace_placement(model, "sandwich", example=X)
    back, report = normkit.replace_placement(there, "pre", example=X)
    assert back.state_dict().keys() == model.state_dict().keys()
    assert report.blocks[0].removed == ("blocks.0.norm1_input",)


def test_moved_norms_keep_name_class_and_eps_and_get_initial_values():
    model = randomised(made("pre"))
    for block in model.blocks:
        block.norm1.eps = 0.25
    new, _ = normkit.replace_placement(model, "post", example=X, calibrate=False)
    norm = new.blocks[1].norm1
    assert (type(norm), norm.eps) == (nn.LayerNorm, 0.25)
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
    assert torch.equal(new.blocks[1].mlp.wide.weight, model.blocks[1].mlp.wide.weight)


def test_a_norm_that_stores_its_weight_less_one_begins_with_zeros():
    model = made("pre", norm=lambda width: normkit.RMSNorm(width, zero_centered=True))
    new, _ = normkit.replace_placement(randomised(model), "sandwich", example=X, calibrate=False)
    assert torch.equal(new.blocks[0].norm1_output.weight, torch.zeros(WIDTH, dtype=torch.float64))
    assert new.blocks[0].norm1_output.zero_centered


def rms(x):
    return x.square().mean().sqrt()


def shares_and_end(model, x):
    """rms(f(x)) / rms(x) of each sum, whose branch is the smaller operand, and the rms of what reaches the head."""
    ends, sums = [], []

    class Sums(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "") in ("add", "add_", "__iadd__") and len(args) == 2:
                low, high = sorted((rms(args[0]).item(), rms(args[1]).item()))
                sums.append(low / high)
            return func(*args, **kwargs or {})

    handle = model.head.register_forward_pre_hook(lambda m, args: ends.append(rms(args[0]).item()))
    with torch.no_grad(), Sums():
        model.eval()(x)
    handle.remove()
    return sums, ends[0]


@pytest.mark.parametrize("to", PLACEMENTS)
@pytest.mark.parametrize("kind", ["pre", "post", "output"])
def test_calibration_gives_the_shares_and_the_scale_of_the_original(kind, to):
    if kind == to:
        return
    model = made(kind)
    with torch.no_grad():
        model.embed.weight.mul_(4)  # the branch is the smaller operand in each sum, so that the two can be told apart
        for block in model.blocks:
            for norm in (block.norm1, block.norm2) if kind == "output" else ():
                norm.weight.mul_(0.3)
    new, report = normkit.replace_placement(model, to, example=X)
    want, end = shares_and_end(model, X)
    found, new_end = shares_and_end(new, X)
    assert len(want) == 4
    torch.testing.assert_close(found, want, rtol=1e-10, atol=0)
    torch.testing.assert_close([row.share for row in report.blocks], want, rtol=1e-10, atol=0)
    assert all(row.gain is not None for row in report.blocks)
    kept = [row for row in report.stacks if row.place == "final" and row.change == "kept"]
    # A norm that stays at the end keeps its weight, and gives its scale up to eps.
    torch.testing.assert_close(new_end, end, rtol=1e-3 if kept else 1e-10, atol=0)


def test_without_calibration_layers_keep_their_weights():
    model = made("pre")
    new, report = normkit.replace_placement(model, "post", example=X, calibrate=False)
    assert all(row.gain is None for row in report.blocks)
    kept = {name: value for name, value in model.state_dict().items() if "norm" not in name}
    assert all(torch.equal(new.state_dict()[name], value) for name, value in kept.items())


def test_a_placement_that_is_there_already_changes_nothing():
    model = randomised(made("pre"))
    new, report = normkit.replace_placement(model, "pre", example=X)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in model.state_dict().items())
    assert str(report).splitlines()[0] == "blocks.0.norm1: pre"
    assert type(new.blocks[0]) is Pre


@pytest.mark.parametrize("to", PLACEMENTS)
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_changed_model_trains_copies_and_saves(kind, to, tmp_path):
    new, _ = normkit.replace_placement(made(kind).float(), to, example=X.float())
    x = X.float()
    optimizer = torch.optim.SGD(new.parameters(), 0.1)
    loss = new.train()(x).square().mean()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in new.named_parameters() if "k.bias" not in n)
    optimizer.step()
    y = new.eval()(x)
    assert torch.equal(copy.deepcopy(new)(x), y)
    torch.save(new, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), y)
    other, _ = normkit.replace_placement(made(kind, seed=3).float(), to, example=x)
    other.load_state_dict(new.state_dict())
    assert torch.equal(other.eval()(x), y)


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("pre", "post"),
        *(pytest.param("post", to, marks=pytest.mark.slow) for to in ("pre", "peri", "sandwich")),
        pytest.param("pre", "peri", marks=pytest.mark.slow),
    ],
)
def test_a_changed_model_compiles_and_exports(kind, to):
    x = X.float()
    new, _ = normkit.replace_placement(made(kind).float(), to, example=x)
    y = new.eval()(x)
    # The eager backend runs the same operations.
    assert torch.equal(torch.compile(new, fullgraph=True, backend="eager")(x), y)
    torch.testing.assert_close(torch.export.export(new, (x,)).module()(x), y)


def test_modules_keep_class_names_and_attributes():
    model = made("pre")
    model.blocks[0].note = "mine"
    new, _ = normkit.replace_placement(model, "post", example=X)
    block = new.blocks[0]
    assert isinstance(block, Pre)
    assert (type(block).__name__, type(block).__module__, block.note) == ("Pre", Pre.__module__, "mine")
    assert type(model.blocks[0]) is Pre
    assert type(new.blocks[0]) is type(pickle.loads(pickle.dumps(new)).blocks[0])


def test_the_report_is_data_and_a_table():
    _, report = normkit.replace_placement(made("pre"), "post", example=X, calibrate=False)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["to"] == "post"
    assert data["blocks"][0]["module"] == "Pre"
    assert str(report) == (
        "blocks.0.norm1: pre -> post\nblocks.0.norm2: pre -> post\nblocks.1.norm1: pre -> post\n"
        "blocks.1.norm2: pre -> post\nnorm: norm at the end of the stack, removed"
    )


def test_in_place_keeps_the_object_modes_hooks_and_random_state():
    model = made("pre").train()
    model.blocks[1].eval()
    calls = []
    model.blocks[0].norm1.register_forward_hook(lambda m, args, out: calls.append(1))
    state = torch.get_rng_state()
    new, _ = normkit.replace_placement(model, "sandwich", example=X, inplace=True)
    assert new is model
    assert torch.equal(torch.get_rng_state(), state)
    modes = [(block.training, block.norm1_output.training) for block in model.blocks]
    assert modes == [(True, True), (False, False)]
    assert model.training
    calls.clear()
    model(X)
    assert len(calls) == 1  # the new norm has no hook


def test_an_error_on_the_way_leaves_the_model_as_it_was(monkeypatch):
    model = randomised(made("pre"))
    before, state = str(model), copy.deepcopy(model.state_dict())

    def fails(*_):
        raise RuntimeError("here")

    monkeypatch.setattr("normkit.tools.replace_placement.run.scale", fails)
    with pytest.raises(RuntimeError, match="here"):
        normkit.replace_placement(model, "post", example=X, inplace=True)
    assert str(model) == before
    assert type(model.blocks[0]) is Pre
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_wrong_arguments():
    with pytest.raises(
        ArgumentError, match=r"to must be one of pre, post, peri, sandwich, got 'posts': did you mean 'p"
    ):
        normkit.replace_placement(made("pre"), "posts", example=X)
    with pytest.raises(ArgumentError, match="an example must be a tensor"):
        normkit.replace_placement(made("pre"), "post", example="x")
    with pytest.raises(DtypeError, match=r"must be a torch\.nn\.Module, got int"):
        normkit.replace_placement(3, "post", example=X)
    with pytest.raises(StateError, match="replace_placement on the model itself"):
        normkit.replace_placement(type("DDP", (Net,), {})().double(), "post", example=X)


class Pooling(Pre):
    """The first branch has no parameters but those of its norm, as in PoolFormer."""

    def forward(self, x):
        x = x + self.norm1(x).mean(1, keepdim=True).expand_as(x)
        return x + self.mlp(self.norm2(x))


def test_a_branch_without_layers_is_a_block_too():
    torch.manual_seed(0)
    new, report = normkit.replace_placement(Net(Pooling).double(), "post", example=X)
    assert [row.gain is None for row in report.blocks] == [True, False] * 2
    y = randomised(new).eval().embed(X)
    for block in new.blocks:
        y = block.norm1(y + y.mean(1, keepdim=True))
        y = block.norm2(y + block.mlp(y))
    close(new(X), new.head(y))


class OnlyInEvaluation(Pre):
    def forward(self, x):
        if self.training:
            return x + self.mlp(x)
        return x + self.mlp(self.norm1(x))


def test_norms_that_training_leaves_out_are_an_error():
    torch.manual_seed(0)
    model = Net(OnlyInEvaluation).double()
    with pytest.raises(StateError, match=r"blocks.0.norm1, blocks.0.norm1_output, blocks.1.norm1 is called in"):
        normkit.replace_placement(model, "sandwich", example=X)


class Shared(Net):
    """One block, called twice."""

    def forward(self, x):
        x = self.embed(x)
        for _ in range(2):
            x = self.blocks[0](x)
        return self.head(self.norm(x))


def test_a_block_that_is_called_twice_is_changed_once_or_refused():
    torch.manual_seed(0)
    model = Shared(Pre, depth=1).double()
    new, report = normkit.replace_placement(model, "post", example=X)
    block = randomised(new).eval().blocks[0]
    x = want = new.embed(X)
    for _ in range(2):
        want = block.norm1(want + block.mixer(want))
        want = block.norm2(want + block.mlp(want))
    close(new(X), new.head(want))
    assert x.shape == want.shape
    assert all(row.gain is None for row in report.blocks)  # a factor for one call would change the other
    _, report = normkit.replace_placement(Shared(Post, depth=1, final=False).double(), "pre", example=X)
    assert "the last block is called several times" in str(report)
    _, report = normkit.replace_placement(model, "peri", example=X)
    assert "the first block is called several times" in str(report)


def test_the_hand_written_norm_is_torchs():
    from placed_blocks import layer_norm

    norm = randomised(nn.LayerNorm(WIDTH).double())
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    close(layer_norm(norm, x), norm(x))
    assert Branch()(torch.zeros(1, WIDTH)).shape == (1, WIDTH)
