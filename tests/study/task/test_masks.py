"""Padding masks reach the norms inside a model, and only those of normkit."""

from __future__ import annotations

import pytest
import torch
from made_up import prepared
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.errors import ArgumentError
from normkit.study.task import Task, variants
from normkit.study.task.masks import give_masks
from normkit.study.training.trainer import Trainer
from normkit.study.training.trial import Trial

GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = torch.randint(2, 9, (60,), generator=GENERATOR)
VALID = torch.arange(8) < LENGTHS[:, None]
SERIES = torch.randn(60, 4, 8, generator=GENERATOR)
# What is in the padding must not matter.
PADDED = torch.where(VALID[:, None], SERIES, 9.0)
LABELS = (SERIES * VALID[:, None]).sum((1, 2)).gt(0).long()


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, series: Tensor, valid: Tensor) -> Tensor:
        return self.head((self.norm(self.conv(series)).relu() * valid[:, None]).sum(2))


@pytest.mark.parametrize("method", ["batch_norm", "instance_norm", "group_norm"])
def test_statistics_are_those_of_valid_positions(method: str) -> None:
    torch.manual_seed(0)
    inputs = {"series": PADDED, "valid": VALID}
    model = variants.applied(Conv(), method, inputs).train()
    expected = model.norm(model.conv(PADDED), mask=VALID)
    before = model.state_dict()
    give_masks(model, lambda given: given["valid"])
    assert list(model.state_dict()) == list(before)
    found = model(**inputs)
    torch.testing.assert_close(found, model.head((expected.relu() * VALID[:, None]).sum(2)))
    clean = {"series": torch.where(VALID[:, None], SERIES, -5.0), "valid": VALID}
    torch.testing.assert_close(model(**clean), found, rtol=1e-4, atol=1e-5)


def test_a_mask_is_given_in_every_run() -> None:
    data = ((PADDED, VALID), LABELS)
    task = Task(Conv, data, data, validation=data, mask=lambda inputs: inputs[1])
    (workload,), _ = prepared(task, methods=["unchanged", "BN"], batch_sizes=[16], steps=40)
    trials = [Trial("tune", "batch_norm", 16, 0.05, seed) for seed in (1, 2)]
    masked = Trainer().execute(task, workload.design, trials)
    plain = Trainer().execute(Task(Conv, data, data, validation=data), workload.design, trials)
    assert all(run.state != "failed" for run in masked), masked
    assert masked[0].losses != plain[0].losses


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            lambda inputs: inputs[1].float(),
            "mask must give a boolean tensor, True at valid positions, got torch.float32",
        ),
        (lambda inputs: inputs[1][:, 1:], r"mask must have the shape of the positions that norms see, got \(2, 7\)"),
    ],
)
def test_a_mask_that_no_norm_can_take_is_refused(mask: object, message: str) -> None:
    data = ((PADDED, VALID), LABELS)
    with pytest.raises(ArgumentError, match=message):
        prepared(Task(Conv, data, data, mask=mask), methods=["BN"], batch_sizes=[16], steps=40)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_layers_of_torch_are_compared_under_each_method() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor, valid: Tensor) -> Tensor:
            return self.head(self.encoder(x, src_key_padding_mask=~valid)[:, 0])

    data = ((PADDED.mT.contiguous(), VALID), LABELS)
    task = Task(Encoder, data, data, mask=lambda inputs: inputs[1])
    (workload,), _ = prepared(task, methods=["unchanged", "LN", "RMS", "DyT"], batch_sizes=[8], steps=40)
    inputs, targets = task.test.take(torch.arange(20))
    for method in workload.design.methods:
        model = task.build(method, 0)
        with torch.no_grad():
            train, evaluated = model.train()(*inputs), model.eval()(*inputs)
        torch.testing.assert_close(train, evaluated, rtol=1e-4, atol=1e-5)
        assert F.cross_entropy(evaluated, targets).isfinite()
    # Without a norm scale and shift are left.
    plain, normed = (list(task.build(method, 0).parameters()) for method in ("none", "layer_norm"))
    assert len(plain) == len(normed)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("method", ["layer_norm", "rms_norm", "dynamic_tanh"])
def test_a_recurrent_network_gets_norms_after_it(kind: type[nn.RNNBase], method: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(4, 6, 2, batch_first=True, bidirectional=True), nn.Linear(12, 2)

        def forward(self, series: Tensor) -> Tensor:
            output, hidden = self.rnn(series)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            assert hidden.shape == (4, len(series), 6)
            last = torch.cat([output[:, -1, :6], output[:, 0, 6:]], 1)
            assert torch.equal(torch.cat([hidden[-2], hidden[-1]], 1), last)
            return self.head(last)

    series = PADDED.mT.contiguous()
    plain = Net()
    before = plain.rnn(series)[0]
    model = variants.applied(plain, method, series[:2])
    norm = model.rnn.norm
    assert model.rnn.hidden_size == 6
    torch.testing.assert_close(model.rnn(series)[0], norm(before))
    model(series)
    packed = nn.utils.rnn.pack_padded_sequence(series, LENGTHS, batch_first=True, enforce_sorted=False)
    output, hidden = model.rnn(packed)
    steps, lengths = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    torch.testing.assert_close(hidden[-2], steps[torch.arange(60), lengths - 1, :6])
    torch.testing.assert_close(hidden[-1], steps[:, 0, 6:])


def test_a_method_that_no_recurrent_network_can_have_is_refused() -> None:
    class Net(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    with pytest.raises(ArgumentError, match="weight_norm must fit somewhere in the model"):
        variants.applied(nn.Sequential(Net(4, 6)), "weight_norm", torch.randn(2, 8, 4))
