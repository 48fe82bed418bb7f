"""Norms that fade into a replacement over the steps of a training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import normkit
from normkit.errors import ArgumentError, DtypeError, StateError
from normkit.tools.convert import Fade


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8))


@pytest.mark.parametrize("method", ["dyt", "derf", "identity", "rms_norm"])
def test_the_output_is_mixed_and_the_end_is_the_replacement(method: str):
    model, x = made(), torch.randn(5, 6)
    at_once, _ = normkit.convert(model, to=method)
    fading, report = normkit.convert(model, to=method, schedule=4)
    assert "fades in, linear over 4 steps" in str(report)
    torch.testing.assert_close(fading(x), model(x), rtol=0, atol=0)
    assert normkit.advance(fading) == 0.25
    hidden = fading[0](x)
    expected = 0.75 * model[1](hidden) + 0.25 * at_once[1](hidden)
    torch.testing.assert_close(fading[1](hidden), expected)
    assert [normkit.advance(fading) for _ in range(4)] == [0.5, 0.75, 1.0, 1.0]
    torch.testing.assert_close(fading(x), at_once(x), rtol=0, atol=0)
    finished = normkit.finish(fading)
    assert [type(module) for module in finished] == [type(module) for module in at_once]
    assert finished.state_dict().keys() == at_once.state_dict().keys()
    torch.testing.assert_close(finished(x), at_once(x), rtol=0, atol=0)
    assert "schedule" not in vars(finished[1])


def test_schedules():
    x = torch.randn(5, 6)
    cosine, _ = normkit.convert(made(), to="dyt", schedule=("cosine", 3))
    assert [normkit.advance(cosine) for _ in range(4)] == pytest.approx([0.25, 0.75, 1.0, 1.0])
    own, report = normkit.convert(made(), to="dyt", schedule=lambda step: 1 - math.exp(-step))
    assert "fades in, by a function of the step" in str(report)
    assert normkit.advance(own, 2) == pytest.approx(1 - math.exp(-2))
    wrong, _ = normkit.convert(made(), to="dyt", schedule=lambda step: step / 2)
    normkit.advance(wrong, 2)
    with pytest.raises(ArgumentError, match=r"number from 0 to 1, got 1.5 at step 3: limit it"):
        normkit.advance(wrong)
    assert int(wrong[1].steps) == 2
    assert wrong(x).isfinite().all()


def test_training_goes_on_from_a_checkpoint():
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        normkit.advance(model)

    def started() -> tuple[nn.Module, torch.optim.Optimizer]:
        model, _ = normkit.convert(made(), to="derf", schedule=6)
        return model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    batches = torch.randn(4, 5, 6)
    model, optimizer = started()
    for x in batches[:2]:
        step(model, optimizer, x)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, other_optimizer = started()
    other.load_state_dict(state[0])
    other_optimizer.load_state_dict(state[1])
    for x in batches[2:]:
        step(model, optimizer, x)
        step(other, other_optimizer, x)
    assert float(other[1].t) == pytest.approx(4 / 6)
    for new, old in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(new, old)


def test_parameters_are_shared_so_that_an_optimizer_stays_valid():
    model = made()
    weight = model[1].weight
    fading, _ = normkit.convert(model, to="dyt", schedule=2, inplace=True)
    assert fading[1].norm.weight is weight is fading[1].replacement.weight
    # What a forward reads of the norm, such as the dtype of its weight, is there.
    assert fading[1].weight is weight
    assert fading[1].eps == 1e-5
    normkit.advance(fading, 2)
    assert normkit.finish(fading, inplace=True)[1].weight is weight


def test_the_loss_stays_small_where_a_sudden_change_makes_it_jump():
    torch.manual_seed(0)
    x = 3 * torch.randn(256, 6)
    labels = (x @ torch.randn(6, 12)).relu().matmul(torch.randn(12, 4)).argmax(1)
    layers = [(nn.Linear(width, 32), nn.LayerNorm(32), nn.ReLU()) for width in (6, 32, 32)]
    model = nn.Sequential(*(layer for group in layers for layer in group), nn.Linear(32, 4))

    def losses(net: nn.Module, steps: int) -> list[float]:
        optimizer, found = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9), []
        for _ in range(steps):
            loss = nn.functional.cross_entropy(net(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
            if any(isinstance(module, Fade) for module in net.modules()):
                normkit.advance(net)
        return found

    before = losses(model, 150)[-1]
    sudden = losses(normkit.convert(model, to="dyt")[0], 1)[0]
    fading = normkit.convert(model, to="dyt", schedule=150)[0]
    faded = losses(fading, 200)
    assert sudden > 5 * before
    assert max(faded) < 0.2 * sudden
    assert losses(normkit.finish(fading), 1)[0] < 2 * before


def test_a_shared_norm_moves_once_and_checkpointing_moves_nothing():
    norm = nn.LayerNorm(6)
    model, _ = normkit.convert(nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 6), norm), to="dyt", schedule=10)
    assert model[1] is model[3]
    x = torch.randn(2, 6, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    assert normkit.advance(model) == pytest.approx(0.1)
    assert int(model[1].steps) == 1


def test_modes_activations_and_batch_norms():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), normkit.BatchNorm2d(4, activation="relu")).eval()
    x = torch.randn(2, 3, 4, 4)
    fading, _ = normkit.convert(model, to="identity", schedule=2)
    assert not any(module.training for module in fading.modules())
    assert torch.equal(fading(x), model(x))
    normkit.advance(fading.train(), 2)
    assert torch.equal(fading(x), model[0](x).relu())
    assert int(fading[1].norm.num_batches_tracked) == 1
    half = copy.deepcopy(fading).half()
    assert half(x.half()).dtype == torch.float16


def test_revert_gives_the_norm_back_with_its_training():
    for calibrate in (None, [torch.randn(8, 6)]):
        model = made()
        fading, report = normkit.convert(model, to="dyt", schedule=4, calibrate=calibrate)
        normkit.advance(fading)
        with torch.no_grad():
            fading[1].norm.weight.fill_(3.0)
        reverted = report.revert(fading)
        assert type(reverted[1]) is nn.LayerNorm
        assert bool((reverted[1].weight == 3).all())
    finished, report = normkit.convert(model, to="dyt", schedule=1)
    normkit.advance(finished)
    reverted = report.revert(normkit.finish(finished))
    torch.testing.assert_close(reverted(torch.ones(2, 6)), model(torch.ones(2, 6)))


def test_compiled_once_for_all_steps():
    fading, _ = normkit.convert(made(), to="dyt", schedule=4)
    counter = CompileCounter()
    compiled = torch.compile(fading, backend=counter, fullgraph=True)
    x = torch.randn(3, 6)
    for _ in range(4):
        torch.testing.assert_close(compiled(x), fading(x))
        normkit.advance(fading)
    assert counter.frame_count == 1


def test_what_is_refused():
    model = made()
    with pytest.raises(ArgumentError, match="schedule fades norms into another method, and to= names none"):
        normkit.convert(model, schedule=3)
    with pytest.raises(ArgumentError, match="shape linear or cosine, got 'cosin': did you mean 'cosine'"):
        normkit.convert(model, to="dyt", schedule=("cosin", 3))
    with pytest.raises(ArgumentError, match="schedule must have at least 1 step, got 0"):
        normkit.convert(model, to="dyt", schedule=0)
    with pytest.raises(DtypeError, match=r"schedule must be a number of steps, .* got str"):
        normkit.convert(model, to="dyt", schedule="linear")
    with pytest.raises(StateError, match="advance needs norms that fade, Sequential has none"):
        normkit.advance(model)
    fading, _ = normkit.convert(model, to="dyt", schedule=3)
    normkit.advance(fading)
    with pytest.raises(StateError, match=r"finish needs norms that have faded, and '1' is at t=0.333"):
        normkit.finish(fading)
    with pytest.raises(ArgumentError, match="steps of advance must be at least 1, got 0"):
        normkit.advance(fading, 0)
    model[1].register_forward_hook(lambda *_: None)
    _, report = normkit.convert(model, to="dyt", schedule=3)
    assert (
        report.refusals[0].reason == "it has hooks, which would not see the mixed output: remove them before the fade"
    )
    assert isinstance(normkit.convert(model, to="dyt")[0][1], normkit.DynamicTanh)


def test_norms_in_the_encoder_of_torch_fade():
    """Its fast path in evaluation reads their weights, so it is turned off."""
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2, enable_nested_tensor=False
    )
    x, padding = torch.randn(2, 3, 8), torch.tensor([[False] * 3, [False, False, True]])
    expected = encoder(x, src_key_padding_mask=padding) if encoder.eval() else None
    fading, report = normkit.convert(encoder, to="identity", schedule=1)
    assert len(report.changes) == 4
    assert torch.equal(fading(x, src_key_padding_mask=padding)[~padding], expected[~padding])
    normkit.advance(fading)
    normkit.finish(fading)
    assert fading(x, src_key_padding_mask=padding).isfinite().all()


def test_a_norm_of_the_same_method_does_not_fade():
    """It shares the running statistics, which both would update."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4))
    to = {nn.BatchNorm1d: "batch_norm", nn.LayerNorm: "dyt"}
    fading, _ = normkit.convert(model, to=to, schedule=3)
    assert [type(module) for module in fading] == [nn.Linear, normkit.BatchNorm1d, Fade]


def test_the_root_itself():
    fade, _ = normkit.convert(nn.LayerNorm(4), to="dyt", schedule=1)
    assert isinstance(fade, Fade)
    normkit.advance(fade)
    assert isinstance(normkit.finish(fade), normkit.DynamicTanh)
