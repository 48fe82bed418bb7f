"""What libraries do with batch norms they do with converted ones: timm's, torch's and our own tools, one by one."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import normkit
import zoo
from normkit.errors import ArgumentError, StateError
from normkit.tools.model.tree import norms
from tools.subjects import randomised

layers = zoo._timm().layers


class Net(nn.Module):
    """Convolutions with timm's batch norms, which apply an activation: one that kernels have, and another."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = layers.BatchNormAct2d(8, act_layer=nn.SiLU, inplace=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = layers.BatchNormAct2d(8, act_layer=nn.Hardswish, drop_layer=nn.Dropout)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(8)
        self.act3 = nn.GELU()

    def forward(self, x):
        x = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return self.act3(self.bn3(self.conv3(x)))


def pair():
    """The model and the converted one, both in evaluation, and an input."""
    torch.manual_seed(0)
    model = randomised(Net()).eval()
    converted, report = normkit.convert(model)
    assert [change.name for change in report.changes] == ["bn1", "bn2", "bn3"]
    return model, converted, torch.randn(4, 3, 6, 6)


def frozen_by_mode(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    return model


def frozen_by_us(model):
    normkit.freeze(model)
    model.train()
    model.bn2.drop.eval()
    return model


def fused(model):
    """As inference scripts do it: the convolution takes the norm in, and the norm's activation is left."""
    for n in "123":
        conv, bn = model.get_submodule(f"conv{n}"), model.get_submodule(f"bn{n}")
        model.add_module(f"conv{n}", nn.utils.fuse_conv_bn_eval(conv, bn))
        model.add_module(f"bn{n}", getattr(bn, "act", nn.Identity()))
    return model


def frozen_and_not(model):
    """What timm freezes and unfreezes begins in training mode."""
    return layers.unfreeze_batch_norm_2d(layers.freeze_batch_norm_2d(model)).eval()


def timm_frozen(model):
    zoo._timm().utils.freeze(model)
    return model


def timm_frozen_and_not(model):
    zoo._timm().utils.unfreeze(timm_frozen(model))
    return model.eval()


UTILITIES = {
    "timm freeze_batch_norm_2d": layers.freeze_batch_norm_2d,
    "timm unfreeze_batch_norm_2d": frozen_and_not,
    "timm convert_sync_batchnorm": layers.convert_sync_batchnorm,
    "timm freeze": timm_frozen,
    "timm freeze and unfreeze": timm_frozen_and_not,
    "frozen by its mode": frozen_by_mode,
    "fuse_conv_bn_eval": fused,
    "normkit.freeze": frozen_by_us,
    "normkit.SyncBatchNorm.convert": normkit.SyncBatchNorm.convert,
    "normkit.SyncBatchNorm.revert": lambda model: normkit.SyncBatchNorm.revert(normkit.SyncBatchNorm.convert(model)),
    "normkit.fold": lambda model: normkit.fold(model, torch.ones(1, 3, 6, 6))[0],
}


@pytest.mark.parametrize("name", UTILITIES)
def test_outputs_are_those_of_the_original_afterwards(name):
    model, converted, x = pair()
    y = model(x)
    with warnings.catch_warnings():
        if "SyncBatchNorm" in name:  # which leaves timm's layers alone and says so
            warnings.simplefilter("ignore", UserWarning)
        for each in (model, converted):
            after = UTILITIES[name](copy.deepcopy(each))
            # Each computes in float32 with constants that were combined in its own order: a few roundings.
            torch.testing.assert_close(after(x), y, rtol=1e-4, atol=1e-5)
    if name.startswith("timm freeze"):
        kinds = {type(module).__name__ for module in after.modules()}
        assert ("FrozenBatchNormAct2d" in kinds) == (name != "timm freeze and unfreeze")


def test_what_torch_breaks_it_breaks_as_before():
    # torch's conversion drops the activation of timm's layers too; ours keeps it, see above.
    model, converted, x = pair()
    found = [nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(each))(x) for each in (model, converted)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    ours = normkit.convert(randomised(plain))[0]
    torch.testing.assert_close(nn.SyncBatchNorm.convert_sync_batchnorm(ours)(x), plain(x), rtol=1e-4, atol=1e-5)


def test_quantization_refuses_to_fuse_what_it_does_not_know():
    _, converted, _ = pair()
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(converted, [["conv1", "bn1"]])


def test_update_bn_gives_the_same_statistics():
    model, converted, _ = pair()
    for each in (model, converted):
        each.bn2.drop.p = 0.0  # dropout draws what no other model draws
        torch.manual_seed(1)
        torch.optim.swa_utils.update_bn([torch.randn(4, 3, 6, 6) for _ in range(3)], each)
    for (key, a), b in zip(model.state_dict().items(), converted.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=key)


def test_a_converted_norm_with_an_activation_is_of_both_classes():
    model, converted, x = pair()
    assert isinstance(converted.bn1, normkit.BatchNorm2d)
    assert isinstance(converted.bn1, layers.BatchNormAct2d)
    assert list(converted.state_dict()) == list(model.state_dict())
    assert [name for name, _ in converted.named_modules()] == [name for name, _ in model.named_modules()]
    assert repr(converted.bn1).startswith("BatchNorm2d(")
    assert {facts.origin for _, facts in norms(converted)} == {"normkit"}
    y = converted(x)
    buffer = io.BytesIO()
    torch.save(converted, buffer)
    buffer.seek(0)
    normkit.freeze(frozen := copy.deepcopy(converted))
    synced = normkit.SyncBatchNorm.convert(copy.deepcopy(converted))
    for each in (converted, frozen, synced):
        again = pickle.loads(pickle.dumps(each))
        assert [type(module) for module in again.modules()] == [type(module) for module in each.modules()]
        assert torch.equal(copy.deepcopy(again)(x), y)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), y)
    assert torch.equal(torch.compile(converted, backend="eager", fullgraph=True)(x), y)


def test_the_activation_is_fused_only_where_nobody_would_miss_it():
    _, converted, _ = pair()
    z = torch.randn(2, 8, 3, 3)
    plain = normkit.BatchNorm2d(8).eval()
    plain.load_state_dict(converted.bn1.state_dict())
    heard = []
    handle = converted.bn1.act.register_forward_hook(lambda module, args, y: heard.append(args[0]))
    y = converted.bn1(z)
    torch.testing.assert_close(heard[0], plain(z))
    handle.remove()
    # The fused activation computes in the norm's pass: a rounding.
    torch.testing.assert_close(converted.bn1(z), y)
    assert len(heard) == 1
    converted.bn1.act = nn.Tanh()
    torch.testing.assert_close(converted.bn1(z), plain(z).tanh())
    converted.bn1.drop = nn.Dropout(1.0)
    assert not converted.bn1.train()(z).any()


def test_a_frozen_norm_with_an_activation_stays_frozen():
    model, _, x = pair()
    y = model(x)
    normkit.freeze(model, where="bn1")
    converted = normkit.convert(model)[0]
    assert isinstance(converted.bn1, layers.BatchNormAct2d)
    assert isinstance(converted.bn1, normkit.BatchNorm2d)
    converted.bn1.train()
    assert not converted.bn1.training
    torch.testing.assert_close(pickle.loads(pickle.dumps(converted))(x), y, rtol=1e-4, atol=1e-5)
    normkit.unfreeze(converted)
    assert converted.bn1.training


def test_a_group_norm_with_an_activation_becomes_such_a_batch_norm():
    torch.manual_seed(0)
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3), layers.GroupNormAct(8, 2)))
    x = torch.randn(4, 3, 6, 6)
    converted = normkit.convert(model, to="BN", example=x)[0].eval()
    y = converted(x)
    torch.testing.assert_close(layers.freeze_batch_norm_2d(copy.deepcopy(converted))(x), y, rtol=1e-4, atol=1e-5)


def test_a_frozen_layer_is_not_made_of_a_norm_with_an_activation():
    model, converted, _ = pair()
    for layer in (model.bn1, converted.bn1):
        with pytest.raises(
            ArgumentError, match=r"got BatchNorm\w*2d with drop and act, whose forward .* normkit.freeze"
        ):
            normkit.FrozenBatchNorm2d.from_batch_norm(layer)
    model.bn3.forward = lambda x: x
    with pytest.raises(ArgumentError, match="got BatchNorm2d, whose forward may do more than its numbers say"):
        normkit.FrozenBatchNorm2d.from_batch_norm(model.bn3)
    normkit.FrozenBatchNorm2d.from_batch_norm(converted.bn3)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def plain_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))


CHANGES = {
    "insert": lambda model, x: normkit.insert(model, "GN", inplace=True),
    "convert(to=)": lambda model, x: normkit.convert(model, "GN", calibrate=[x], inplace=True),
    "convert(to=) of a copy": lambda model, x: normkit.convert(model, "GN"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrapped_model_is_not_changed_behind_its_wrapper(change, one_process):
    x = torch.randn(2, 3, 8, 8)
    wrapped = nn.parallel.DistributedDataParallel(plain_net())
    held = nn.ModuleDict({"net": wrapped})
    before = list(wrapped.state_dict())
    rule = rf"{change.split(' of')[0].replace('(', '.').replace(')', '.')} needs a model whose parameters no wrapper"
    with pytest.raises(StateError, match=rule + r".* got the model in DistributedDataParallel: .*model\.module.* wrap"):
        CHANGES[change](wrapped, x)
    with pytest.raises(StateError, match=rule + ".* got 'net' of the model in DistributedDataParallel"):
        CHANGES[change](held, x)
    assert list(wrapped.state_dict()) == before
    CHANGES[change](wrapped.module, x)


def test_a_wrapped_model_may_get_the_layers_of_the_same_parameters(one_process):
    wrapped = nn.parallel.DistributedDataParallel(plain_net())
    parameters = list(wrapped.parameters())
    converted, report = normkit.convert(wrapped, inplace=True)
    assert isinstance(converted.module[1], normkit.BatchNorm2d)
    assert all(a is b for a, b in zip(parameters, wrapped.parameters(), strict=True))
    report.revert(wrapped)
    assert type(wrapped.module[1]) is nn.BatchNorm2d


def test_a_sharded_model_is_not_changed(one_process):
    model = plain_net()
    torch.distributed.fsdp.fully_shard(model[3])
    with pytest.raises(StateError, match=r"convert needs .* got '3' of the model in FSDPModule: call convert before"):
        normkit.convert(model)
    with pytest.raises(StateError, match=r"insert needs .* in FSDPModule: call insert before the model is sharded"):
        normkit.insert(model, "GN", inplace=True)
    converted, report = normkit.convert(plain_net(), "GN")
    torch.distributed.fsdp.fully_shard(converted)
    with pytest.raises(StateError, match=r"revert needs .* got the model in FSDPModule"):
        report.revert(converted)
    assert isinstance(converted[1], normkit.GroupNorm)


@pytest.mark.parametrize("name", ["FullyShardedDataParallel", "DeepSpeedEngine", "ReplicateModule"])
def test_wrappers_are_known_by_name(name):
    wrapper = type(name, (nn.Sequential,), {})(plain_net())
    with pytest.raises(StateError, match=rf"insert needs .* got the model in {name}"):
        normkit.insert(wrapper, "GN")
    if name == "ReplicateModule":
        assert normkit.convert(wrapper)[1].changes
    else:
        with pytest.raises(StateError, match=rf"convert needs .* got the model in {name}"):
            normkit.convert(wrapper)
