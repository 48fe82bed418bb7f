"""Batches of any structure, errors, refusals, wrappers and several ranks."""

from __future__ import annotations

import copy
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from recalibrated_models import ROUNDING, batches_of, pooled, stack
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset

import normkit
from normkit.errors import ArgumentError, StateError
from zoo import image_model


def everything(model: nn.Module) -> dict:
    return {
        name: (
            module.training,
            getattr(module, "momentum", None),
            dict(module._forward_pre_hooks),
            dict(module._forward_hooks),
            {key: value.clone() for key, value in module.named_buffers(recurse=False)},
        )
        for name, module in model.named_modules()
    }


def assert_same(model: nn.Module, before: dict) -> None:
    for name, (*facts, buffers) in everything(model).items():
        *old, kept = before[name]
        assert facts == old
        for key, value in buffers.items():
            assert torch.equal(value, kept[key]), (name, key)


@pytest.mark.parametrize(
    "structure",
    [
        lambda x: x,
        lambda x: (x, "label"),
        lambda x: [x, "label"],
        lambda x: {"input": x},
        lambda x: ({"input": x}, "label"),
    ],
)
def test_batches_of_any_structure(structure):
    model, batches = stack(), batches_of(4)
    expected = copy.deepcopy(model)
    normkit.recalibrate(expected, batches)
    normkit.recalibrate(model, [structure(x) for x in batches], device="cpu")
    assert torch.equal(model[5].running_var, expected[5].running_var)


def test_a_callable_feeds_other_batches():
    model, batches = stack(), batches_of(4)
    expected = copy.deepcopy(model)
    normkit.recalibrate(expected, batches)
    normkit.recalibrate(model, [{"left": x} for x in batches], forward=lambda m, batch: m(batch["left"]))
    assert torch.equal(model[5].running_var, expected[5].running_var)


def test_a_loader_is_read_once_per_phase_but_for_phases_without_a_norm():
    data = TensorDataset(torch.randn(10, 4))
    model = stack()
    report = normkit.recalibrate(model, DataLoader(data, batch_size=4), phases=3)
    assert (report.batches, report.phases) == (3, 2)
    torch.testing.assert_close(model[1].running_mean.double(), pooled(model[0](data.tensors[0]))[0], rtol=0, atol=1e-6)


def test_only_the_norms_train_meanwhile():
    model = stack().eval()
    model[4].train()
    modes = []
    model[3].register_forward_hook(lambda *_: modes.append([m.training for m in model]))
    before = [m.training for m in model]
    normkit.recalibrate(model, batches_of(4, sizes=(3,)), phases=2)
    # In the second phase the first norm evaluates already.
    assert modes == [[i in (1, 5) for i in range(6)], [i == 5 for i in range(6)]]
    assert [m.training for m in model] == before


class Sideways(nn.Module):
    """A norm off the path, one behind a flag, and one used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.alias = self.used

    def forward(self, x: Tensor) -> Tensor:
        return self.alias(self.used(x)[:2] * 2 + 1)


def test_a_norm_never_executed_keeps_its_statistics():
    model = Sideways()
    model.unused.running_mean.fill_(7.0)
    before = copy.deepcopy(model.unused.state_dict())
    report = normkit.recalibrate(model, batches_of(4, sizes=(3, 4)))
    assert all(torch.equal(value, before[key]) for key, value in model.unused.state_dict().items())
    assert {row.name: (row.outcome, row.elements) for row in report.norms} == {
        "used": ("new", 3 + 2 + 4 + 2),
        "unused": ("not reached", 0),
    }
    assert "not reached" in str(report)
    assert report.to_dict()["norms"][1]["outcome"] == "not reached"


def broken_loader():
    yield torch.randn(3, 4)
    raise OSError("disk")


@pytest.mark.parametrize("training", [True, False])
def test_a_loader_that_raises_leaves_all_as_it_was(training):
    model = stack().train(training)
    model[1].register_forward_hook(lambda *_: None)
    model(torch.randn(8, 4))
    before = everything(model)
    with pytest.raises(OSError, match="disk"):
        normkit.recalibrate(model, broken_loader())
    assert_same(model, before)


class BreaksInPhaseTwo(list):
    def __init__(self) -> None:
        super().__init__(batches_of(4))
        self.read = 0

    def __iter__(self):
        self.read += 1
        return super().__iter__() if self.read == 1 else broken_loader()


def test_a_later_phase_that_raises_leaves_all_as_it_was():
    model = stack()
    before = everything(model)
    with pytest.raises(OSError, match="disk"):
        normkit.recalibrate(model, BreaksInPhaseTwo(), phases=2)
    assert_same(model, before)


def test_a_model_that_raises_leaves_all_as_it_was():
    model = stack()
    before = everything(model)
    with pytest.raises(RuntimeError, match="shape"):
        normkit.recalibrate(model, [torch.randn(3, 4), torch.randn(3, 5)])
    assert_same(model, before)


@pytest.mark.parametrize(
    ("batches", "options", "error", "text"),
    [
        ([], {}, StateError, "needs at least one batch, got none"),
        ([torch.randn(1, 4)], {}, StateError, "needs two values per channel, '1' got one from 1 batches"),
        ([torch.full((3, 4), torch.nan)], {}, StateError, "those of '1' are not after 1 batches"),
        ([torch.randn(3, 4)], {"phases": 0}, ArgumentError, "phases must be at least 1, got 0"),
        (iter([torch.randn(3, 4)]), {"phases": 2}, ArgumentError, "can be read once: give a list or a DataLoader"),
    ],
)
def test_what_gives_no_statistics_is_refused_and_changes_nothing(batches, options, error, text):
    model = stack()
    before = everything(model)
    with pytest.raises(error, match=text):
        normkit.recalibrate(model, batches, **options)
    assert_same(model, before)


HALF_NORMS = [
    nn.BatchNorm1d(3),
    nn.SyncBatchNorm(3),
    nn.InstanceNorm1d(3, track_running_stats=True),
    normkit.BatchNorm1d(3),
    normkit.SyncBatchNorm(3),
    normkit.InstanceNorm1d(3, track_running_stats=True),
    normkit.GhostBatchNorm1d(3, virtual_batch_size=2),
    normkit.BatchRenorm1d(3),
]


@pytest.mark.parametrize("norm", HALF_NORMS, ids=lambda norm: f"{type(norm).__module__}.{type(norm).__name__}")
@pytest.mark.parametrize("phases", [1, 2])
def test_statistics_that_their_dtype_cannot_hold_are_refused(norm, phases):
    """A variance of a million: beyond float16, and no trouble to bfloat16 or to a norm that is kept in float32."""
    data = torch.randn(16, 3, 5) * 1000
    model = nn.Sequential(copy.deepcopy(norm).half(), nn.BatchNorm1d(3).half())
    before = everything(model)
    text = r"statistics of '0' must be finite as torch\.float16, whose largest number is 6\.55e\+04, got "
    with pytest.raises(StateError, match=text):
        normkit.recalibrate(model, [data.half()], phases=phases)
    assert_same(model, before)
    wide = copy.deepcopy(norm).bfloat16()
    assert normkit.recalibrate(wide, [data.bfloat16()]).norms[0].outcome == "new"
    assert wide.running_var.isfinite().all()
    mixed = copy.deepcopy(norm).float()
    normkit.recalibrate(mixed, [data])
    axes = 2 if isinstance(norm, nn.modules.instancenorm._InstanceNorm) else (0, 2)
    expected = data.double().var(axes, correction=1)
    torch.testing.assert_close(mixed.running_var.double(), expected.reshape(-1, 3).mean(0), **ROUNDING)


def test_a_sample_alone_does_not_meet_statistics_that_overflow():
    """Where a batch has no variance the norm uses the statistics so far, which are stored for that."""
    model = nn.Sequential(nn.BatchNorm1d(3).half())
    before = everything(model)
    batches = [(torch.randn(8, 3) * 1000).half(), (torch.randn(1, 3) * 1000).half()]
    with pytest.raises(StateError, match="statistics of '0' must be finite"):
        normkit.recalibrate(model, batches)
    assert_same(model, before)


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        (torch.randn(2, 4), r"got one tensor of shape \(2, 4\): put it into a list, \[x\]"),
        ({"input": torch.randn(2, 4)}, r"got one dict: put it into a list, \[batch\]"),
        ("data", r"got one str: put it into a list, \[batch\]"),
        (3, r"got int: give a list of batches or a DataLoader"),
    ],
)
def test_a_single_batch_in_place_of_several_is_refused(batches, text):
    model = stack()
    before = everything(model)
    with pytest.raises(ArgumentError, match=f"the data of recalibrate must be batches, {text}"):
        normkit.recalibrate(model, batches)
    assert_same(model, before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_on_meta_is_refused(device):
    with pytest.raises(StateError, match=r"recalibrate needs tensors with values, '1\.weight' is on the meta device"):
        normkit.recalibrate(stack().to("meta"), [torch.randn(3, 4, device=device)])


def test_lazy_norms_must_know_their_size():
    with pytest.raises(StateError, match="'0' does not: call the model once"):
        normkit.recalibrate(nn.Sequential(nn.LazyBatchNorm1d()), [torch.randn(3, 4)])


def test_a_first_batch_of_one_sample_meets_the_old_statistics():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[0].running_mean.fill_(5.0)
    alone = torch.tensor([[1.0, 2.0]])
    seen: list[Tensor] = []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    normkit.recalibrate(model, [alone, torch.randn(4, 2)])
    torch.testing.assert_close(seen[0], (alone - 5) / (1 + 1e-5) ** 0.5)


def test_models_without_running_statistics_are_left_alone():
    report = normkit.recalibrate(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False)), [])
    assert report.norms == ()


def test_frozen_norms_keep_their_statistics():
    model = stack()
    normkit.freeze(model, where="1")
    before = copy.deepcopy(model[1].state_dict())
    report = normkit.recalibrate(model, batches_of(4))
    assert [row.outcome for row in report.norms] == ["frozen", "new"]
    assert all(torch.equal(value, before[key]) for key, value in model[1].state_dict().items())
    normkit.unfreeze(model)
    assert model[1].training


def test_a_compiled_model_is_heard():
    torch._dynamo.reset()
    model = stack()
    batches = batches_of(4, sizes=(3, 5))
    expected = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    compiled.eval()(batches[0])
    normkit.recalibrate(expected, batches)
    normkit.recalibrate(compiled, batches)
    assert torch.equal(model[5].running_var, expected[5].running_var)


def test_sync_batch_norm_needs_no_gpu():
    model = stack(nn.SyncBatchNorm)
    expected = stack()
    expected.load_state_dict(model.state_dict())
    batches = batches_of(4)
    for subject in (model, expected):
        normkit.recalibrate(subject, batches, phases=2)
    torch.testing.assert_close(model[5].running_var, expected[5].running_var, rtol=1e-5, atol=0)


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    normkit.recalibrate(stack(), batches_of(4), progress=True)
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.warns(UserWarning, match="pip install rich"):
        normkit.recalibrate(stack(), batches_of(4), progress=True)


def test_a_residual_network_of_timm():
    model, x = image_model("resnet10t")
    batches = [x, torch.randn_like(x[:1]), torch.randn_like(x) + 1]
    report = normkit.recalibrate(model, batches, phases=2)
    assert {row.outcome for row in report.norms} == {"new"}
    first = model.conv1[0]
    mean, var = pooled(torch.cat([first(x) for x in batches]).detach())
    # The convolution of another batch size may round otherwise, by units of the largest value.
    torch.testing.assert_close(model.conv1[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.conv1[1].running_var.double(), var, rtol=1e-5, atol=0)


def test_a_group_of_one_rank_changes_nothing(tmp_path: Path):
    """The way through the sums over ranks, without a second process."""
    model, batches = stack(), batches_of(4, drift=1.0)
    alone = copy.deepcopy(model)
    expected = normkit.recalibrate(alone, batches, phases=2)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert normkit.recalibrate(model, batches, phases=2) == expected
    finally:
        distributed.destroy_process_group()
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.state_dict().items())


def rank_recalibrates(rank: int, place: str, sizes: list[list[int]], synced: bool, fails: bool) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=len(sizes))
    try:
        torch.manual_seed(0)
        # DistributedDataParallel takes no SyncBatchNorm on the CPU.
        model = stack(nn.SyncBatchNorm) if synced else nn.parallel.DistributedDataParallel(stack())
        data = torch.load(f"{place}/data.pt")
        mine = data.split([*chain(*sizes)])[sum(map(len, sizes[:rank])) :][: len(sizes[rank])]
        before = everything(model)
        if fails:
            error, text = (OSError, "disk") if rank == 0 else (StateError, "another rank raised")
            with pytest.raises(error, match=text):
                normkit.recalibrate(model, broken_loader() if rank == 0 else mine)
            assert_same(model, before)
        else:
            report = normkit.recalibrate(model, mine, phases=2)
            state = getattr(model, "module", model).state_dict()
            torch.save((state, report.to_dict()), f"{place}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("synced", "fails"), [(True, False), (False, False), (False, True)])
def test_ranks_with_different_numbers_of_batches_agree(tmp_path: Path, synced: bool, fails: bool):
    sizes = [[3, 1], [], [2, 5, 4]]
    data = torch.randn(sum(map(sum, sizes)), 4, generator=torch.Generator().manual_seed(1)) * 3 + 100
    torch.save(data, tmp_path / "data.pt")
    multiprocessing.spawn(rank_recalibrates, (str(tmp_path), sizes, synced, fails), nprocs=len(sizes))
    if fails:
        return
    torch.manual_seed(0)
    model = stack()
    normkit.recalibrate(model, data.split([*chain(*sizes)]), phases=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    for state, report in results:
        assert report == results[0][1]
        assert report["batches"] == 5
        assert [row["elements"] for row in report["norms"]] == [15, 15]
        for name, value in model.state_dict().items():
            # The first norm's inputs are the same bits; those of the second went through another sum over ranks.
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
