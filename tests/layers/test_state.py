"""Running statistics, old files, lazy layers and arguments: what a layer holds, beside what it computes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit
from normkit import layers
from normkit.errors import ArgumentError, DtypeError, ShapeError
from normkit.functional.extras import Epilogues, Extras
from versions import TORCH, takes_bias

# SyncBatchNorm is none of torch's, because DistributedDataParallel refuses that one on a CPU.
SHARED = sorted(name for name in layers.__all__ if hasattr(nn, name) and name != "SyncBatchNorm")
LAZY = [name for name in SHARED if name.startswith("Lazy")]
SHAPES = {"1d": (4, 3, 5), "2d": (4, 3, 2, 5), "3d": (4, 3, 2, 2, 3)}


def unchanged(layer: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize("name", SHARED)
def test_a_layer_of_torch_has_its_signature_and_is_one(name):
    ours, theirs = getattr(normkit, name), getattr(nn, name)
    made, called = (dict(inspect.signature(f).parameters) for f in (ours, ours.forward))
    for option, default in ours.options.items():  # what torch's layers do not take
        assert made.pop(option).default == default
    if ours.options:
        for keyword in Extras.__annotations__ | Epilogues.__annotations__:
            assert called.pop(keyword).default in (None, False)
    if TORCH < (2, 12) and "bias" in made and not takes_bias(theirs):
        assert made.pop("bias").default is True
    expected = inspect.signature(theirs).parameters.values()
    assert [(p.name, p.kind, p.default) for p in made.values()] == [(p.name, p.kind, p.default) for p in expected]
    assert called.keys() == inspect.signature(theirs.forward).parameters.keys()
    assert issubclass(ours, theirs)


BIASED = [name for name in layers.__all__ if "bias" in inspect.signature(getattr(normkit, name)).parameters]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BIASED)
def test_a_layer_has_a_bias_or_none(name, bias):
    """In every version of torch, although most norms of its own take no ``bias=`` before 2.12."""
    kind = getattr(normkit, name)
    first = {"GroupNorm": (2, 4), "Norm": ("b c [...]", 4), **dict.fromkeys(LAZY, ())}.get(name, (4,))
    more = {"virtual_batch_size": 3} if "Ghost" in name else {}
    affine = {"affine": True} if "affine" in inspect.signature(kind).parameters else {}
    layer = kind(*first, bias=bias, **affine, **more)
    assert f"bias={bias}" in repr(layer) or "Frozen" in name
    dims = int(name[-2]) if name.endswith("d") else 2
    layer(torch.randn(6, 4, *[4] * (3 if name == "LayerNorm2d" else dims)))
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert ("bias" in twin.state_dict()) is bias
        assert (twin.bias is not None) is bias
        with torch.no_grad():
            twin.weight.fill_(3)
        if hasattr(twin, "reset_parameters"):
            twin.reset_parameters()
            assert torch.equal(twin.weight, torch.ones(4))
            assert twin.bias is None or torch.equal(twin.bias, torch.zeros(4))


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_running_statistics_follow_the_definition(momentum):
    layer = normkit.BatchNorm2d(3, momentum=momentum)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for step in range(1, 5):
        torch.manual_seed(step)
        x = torch.randn(4, 3, 2, 5) * step + step
        layer(x)
        share = 1 / step if momentum is None else momentum
        channels = x.double().transpose(0, 1).flatten(1)
        mean = (1 - share) * mean + share * channels.mean(1)
        var = (1 - share) * var + share * channels.var(1, correction=1)
        assert layer.num_batches_tracked == step
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-6, atol=0)
    before = copy.deepcopy(layer.state_dict())
    layer.eval()(x)
    assert unchanged(layer, before)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_empty_batch_is_counted_as_torch_does_and_moves_no_statistics(momentum):
    layer, theirs = normkit.BatchNorm1d(5, momentum=momentum), nn.BatchNorm1d(5, momentum=momentum)
    layer(torch.randn(4, 5, 9))
    theirs.load_state_dict(layer.state_dict())
    assert layer(torch.empty(0, 5, 9)).shape == (0, 5, 9)
    theirs(torch.empty(0, 5, 9))
    assert layer.num_batches_tracked == 2
    assert unchanged(layer, theirs.state_dict())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [normkit.BatchNorm2d, lambda n: normkit.InstanceNorm2d(n, track_running_stats=True)])
def test_a_checkpointed_step_counts_once(make, reentrant):
    plain, recomputed = make(3), make(3)
    x = torch.randn(4, 3, 2, 5, requires_grad=True)
    plain(x).square().sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(recomputed, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected)
    assert unchanged(recomputed, plain.state_dict())


def test_without_running_statistics_both_modes_use_the_batch():
    layer = normkit.BatchNorm2d(3, track_running_stats=False)
    x = torch.randn(4, 3, 2, 5) + 5
    assert torch.equal(layer.eval()(x), layer.train()(x))
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_a_frozen_layer_in_training_updates_nothing_when_statistics_are_off():
    layer = normkit.BatchNorm2d(3)
    layer.track_running_stats = False
    before = copy.deepcopy(layer.state_dict())
    layer.train()(torch.randn(4, 3, 2, 5))
    assert unchanged(layer, before)


def test_files_from_before_the_batch_counter_load():
    state = normkit.BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        normkit.BatchNorm1d(3).load_state_dict(state)
    state._metadata[""]["version"] = 1
    layer = normkit.BatchNorm1d(3)
    layer.load_state_dict(state, strict=True)
    assert layer.num_batches_tracked == 0


def test_files_from_when_instance_norm_always_had_statistics_are_refused_with_a_reason():
    state = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    with pytest.raises(RuntimeError, match="track_running_stats=True"):
        normkit.InstanceNorm1d(3).load_state_dict(state)


@pytest.mark.parametrize("name", LAZY)
def test_lazy_layers_become_the_plain_ones(name):
    kind = getattr(normkit, name.removeprefix("Lazy"))
    x = torch.randn(SHAPES[name[-2:]])
    lazy = getattr(normkit, name)(affine=True, track_running_stats=True, momentum=0.3)
    model = nn.Sequential(lazy)
    plain = kind(3, affine=True, track_running_stats=True, momentum=0.3)
    assert torch.equal(model(x), plain(x))
    assert type(lazy) is kind
    assert repr(lazy) == repr(plain)
    assert unchanged(lazy, plain.state_dict())
    assert torch.equal(model(x), plain(x))
    fresh = getattr(normkit, name)(affine=True)
    fresh.load_state_dict(plain.state_dict())
    # torch learns the number of channels from a file only for the tensors; the layer itself at its first input.
    assert torch.equal(fresh.weight, plain.weight)
    with pytest.raises(ShapeError, match="must be the layer's 3 channels"):
        fresh(torch.randn(2, 5, *x.shape[2:]))
    assert torch.equal(fresh.eval()(x), plain.eval()(x))
    assert (type(fresh), fresh.num_features) == (kind, 3)


@pytest.mark.parametrize("name", LAZY)
def test_a_wrong_first_input_does_not_size_a_lazy_layer(name):
    lazy = getattr(normkit, name)(affine=True)
    with pytest.raises(ShapeError, match=rf"(?s)got shape \(2,\): reshape.*in {name}\("):
        lazy(torch.randn(2))
    assert lazy.has_uninitialized_params()
    lazy(torch.randn(SHAPES[name[-2:]]))
    assert lazy.num_features == 3


def test_a_lazy_instance_norm_without_batch_counts_the_first_dimension():
    lazy = normkit.LazyInstanceNorm2d(affine=True)
    assert lazy(torch.randn(3, 4, 5)).shape == (3, 4, 5)
    assert lazy.num_features == 3


@pytest.mark.parametrize("kind", [normkit.InstanceNorm1d, normkit.InstanceNorm2d, normkit.InstanceNorm3d])
def test_instance_norm_without_a_batch(kind):
    layer = kind(3, affine=True, track_running_stats=True)
    x = torch.randn(SHAPES[kind.__name__[-2:]])[0]
    twin = copy.deepcopy(layer)
    assert torch.equal(layer(x), twin(x.unsqueeze(0)).squeeze(0))
    assert unchanged(layer, twin.state_dict())
    with pytest.raises(ShapeError, match=r"dimension 0 of the input must be the layer's 3 channels, got 2"):
        layer(x[:2])


def test_instance_norm_without_parameters_only_warns_of_other_channels():
    layer = normkit.InstanceNorm1d(3)
    with pytest.warns(UserWarning, match="num_features=3 is untrue"):
        y = layer(torch.randn(2, 4, 5))
    assert y.shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: normkit.BatchNorm1d(0), "num_features of BatchNorm1d must be at least 1, got 0"),
        (lambda: normkit.BatchNorm2d(-3), "num_features of BatchNorm2d must be at least 1, got -3"),
        (lambda: normkit.InstanceNorm3d(num_features=0), "num_features of InstanceNorm3d must be at least 1"),
        (lambda: normkit.LazyBatchNorm2d(eps=-1.0), "eps of LazyBatchNorm2d must not be negative, got -1.0: use"),
        (lambda: normkit.LayerNorm(3, eps=float("nan")), "eps of LayerNorm must not be negative, got nan"),
        (lambda: normkit.LayerNorm((3, 0)), r"sizes of LayerNorm must be at least 1, got \(3, 0\)"),
        (lambda: normkit.RMSNorm(0), "sizes of RMSNorm must be at least 1, got 0"),
        (lambda: normkit.RMSNorm(3, eps=-1e-6), "eps of RMSNorm must not be negative"),
        (lambda: normkit.GroupNorm(0, 6), "num_groups of GroupNorm must be at least 1, got 0"),
        (lambda: normkit.GroupNorm(3, 0), "num_channels of GroupNorm must be at least 1, got 0"),
        (lambda: normkit.GroupNorm(32, 72), "32 groups for 72 channels: the nearest that does is 36"),
        (
            lambda: normkit.GroupNorm(3.0, 6),
            "num_groups of GroupNorm must be a whole number of at least 1, got 3.0: use",
        ),
        (lambda: normkit.GroupNorm(True, 6), "num_groups of GroupNorm must be a whole number of at least 1, got True"),
        (lambda: normkit.LayerNorm2d(0), "num_channels of LayerNorm2d must be at least 1, got 0"),
        (lambda: normkit.LocalResponseNorm(0), "size of LocalResponseNorm must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_layer_is_made(make, says):
    with pytest.raises(ArgumentError, match=says):
        make()


def test_a_group_of_one_value_is_refused():
    with pytest.raises(ShapeError, match=r"(?s)bias alone: use fewer groups.*in GroupNorm\(6, 6"):
        normkit.GroupNorm(6, 6)(torch.randn(2, 6))


def test_layer_norm2d_is_layer_norm_behind_a_permute():
    ours, theirs = normkit.LayerNorm2d(6), nn.LayerNorm(6, eps=1e-6)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 6, 4, 5)
    # Two implementations of numbers near 1, each within a few units in the last place.
    torch.testing.assert_close(ours(x), theirs(x.movedim(1, -1)).movedim(-1, 1), rtol=1e-5, atol=1e-5)
    assert repr(ours) == "LayerNorm2d(6, eps=1e-06, affine=True, bias=True)"
    assert list(normkit.LayerNorm2d(6, bias=False).state_dict()) == ["weight"]
    assert not normkit.LayerNorm2d(6, affine=False).state_dict()
    fresh = normkit.LayerNorm2d(6)
    assert torch.equal(fresh.weight, torch.ones(6))
    assert torch.equal(fresh.bias, torch.zeros(6))


@pytest.mark.parametrize("make", [normkit.BatchNorm2d, normkit.LayerNorm, normkit.RMSNorm, normkit.LayerNorm2d])
def test_device_and_dtype(make):
    layer = make(3, device="meta", dtype=torch.bfloat16)
    for p in layer.parameters():
        assert p.device.type == "meta"
        assert p.dtype == torch.bfloat16


def test_other_peoples_tools_know_the_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), normkit.BatchNorm2d(4), normkit.LazyBatchNorm2d())
    model(torch.randn(2, 3, 2, 2))
    torch.nn.init.constant_(model[1].weight, 2.0)
    expected = copy.deepcopy(model[1].state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert all(isinstance(converted[i], nn.SyncBatchNorm) for i in (1, 2))
    assert unchanged(converted[1], expected)
    pair = nn.Sequential(nn.Conv2d(3, 4, 1), normkit.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 5, 5)
    fused = torch.nn.utils.fuse_conv_bn_eval(pair[0], pair[1])
    torch.testing.assert_close(fused(x), pair(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_default_eps_of_rms_norm_is_that_of_the_arithmetic(dtype):
    layer = normkit.RMSNorm(8, dtype=dtype)
    assert repr(layer) == repr(nn.RMSNorm(8, dtype=dtype))
    # Mean squares near 1e-7, where float32's eps takes a third of the result away and float64's nothing.
    torch.manual_seed(0)
    x = (torch.randn(4, 8) * 3e-4).to(dtype)
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(layer(x).double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("kind", ["sparse_coo", "sparse_csr", "_mkldnn", "nested"])
@pytest.mark.filterwarnings("ignore:.*in prototype stage", "ignore:Sparse CSR tensor support is in beta")
def test_a_tensor_without_strides_is_refused(kind):
    dense = torch.ones(4, 6)
    make = {
        "sparse_coo": dense.to_sparse,
        "sparse_csr": dense.to_sparse_csr,
        "_mkldnn": dense.to_mkldnn,
        "nested": lambda: torch.nested.nested_tensor([dense, dense]),
    }
    layer = normkit.LayerNorm2d(6) if kind == "nested" else normkit.LayerNorm(6)
    with pytest.raises(DtypeError, match=rf"(?s)needs a dense tensor as input, got a {kind} one: .*in LayerNorm"):
        layer(make[kind]())


def test_counts_may_be_those_of_numpy():
    numpy = pytest.importorskip("numpy")
    x = torch.randn(2, 6, 4)
    assert torch.equal(normkit.GroupNorm(numpy.int64(3), 6)(x), normkit.GroupNorm(3, 6)(x))
    assert normkit.Norm("b [c] ...", numpy.int64(6))(x).shape == x.shape
    with pytest.raises(ArgumentError, match=r"num_groups must be a whole number of at least 1, got 3\.0: use int"):
        normkit.functional.group_norm(x, 3.0)


@pytest.mark.parametrize("fast_path", [True, False])
def test_channels_whose_moments_are_not_finite_keep_their_statistics_and_are_counted(fast_path, monkeypatch):
    if not fast_path:
        monkeypatch.setattr("normkit.kernels.fastpath.norm", lambda *_: None)
    layer = normkit.BatchNorm2d(3)
    assert layer.num_batches_skipped is None
    keys = list(layer.state_dict())
    x = torch.randn(4, 3, 2, 2)
    layer(x)
    assert layer.num_batches_skipped is None
    before = layer.running_mean.clone()
    x[1, 1, 0, 0] = torch.inf
    layer(x), layer(x)
    assert layer.num_batches_skipped.tolist() == [0, 2, 0]
    assert (layer.running_mean != before).tolist() == [True, False, True]
    assert list(layer.state_dict()) == keys
    layer.eval()(x)
    assert copy.deepcopy(layer).num_batches_skipped.tolist() == [0, 2, 0]
