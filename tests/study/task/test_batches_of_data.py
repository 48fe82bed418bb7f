"""Every form of data becomes the same batches, and what cannot is refused by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from made_up import prepared
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from normkit.errors import ArgumentError
from normkit.study.task import Part, Task
from normkit.study.task.part import call
from normkit.study.training.trial import batches

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 6, generator=GENERATOR)
Y = X.sum(1).gt(0).long()
INDEX = torch.tensor([[3, 5], [0, 7]])


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


class Samples(Dataset[object]):
    """A data set whose samples a function makes."""

    def __init__(self, make: object) -> None:
        self.make = make

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> object:
        return self.make(index)  # type: ignore[operator]


FORMS = {
    "pair": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy().astype(np.float64), Y.numpy()),
    "numbers": (X, Y.tolist()),
    "data set": Samples(lambda i: (X[i], Y[i])),
    "samples": [(X[i], int(Y[i])) for i in range(60)],
    "tensors": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_pair_give_the_same_batches(form: str) -> None:
    part = Part.of("train", FORMS[form])
    assert len(part) == 60
    for index in (INDEX, INDEX[0]):
        inputs, targets = part.take(index)
        torch.testing.assert_close(inputs, X[index])
        assert torch.equal(targets, Y[index])
    assert [len(targets) for _, targets in part.chunks(25)] == [25, 25, 10]
    assert torch.equal(part.cut(torch.tensor([4, 2])).take(torch.tensor([1]))[0], part.take(torch.tensor([2]))[0])


@pytest.mark.parametrize(
    ("given", "inputs", "targets"),
    [
        (X, X, X),
        ((X, Y, X), (X, Y), X),
        (Samples(lambda i: (X[i], Y[i], X[i])), (X, Y), X),
        ({"x": X, "label": Y}, {"x": X, "label": Y}, Y),
        (Samples(lambda i: {"x": X[i], "y": Y[i]}), {"x": X, "y": Y}, Y),
        (Samples(lambda i: X[i]), X, X),
        ((X, (X, Y)), X, (X, Y)),
        ((X, {"a": X, "b": Y}), X, {"a": X, "b": Y}),
    ],
)
def test_batches_are_split_by_one_rule(given: object, inputs: object, targets: object) -> None:
    part = Part.of("train", given)
    assert len(part) == 60
    found = part.take(INDEX)
    torch.testing.assert_close(found, torch.utils._pytree.tree_map(lambda t: t[INDEX], (inputs, targets)))


def test_a_loss_keeps_the_labels_of_a_dictionary_from_the_model() -> None:
    data = {"x": X, "label": Y}
    own, given = Task(net, data, data), Task(net, data, data, loss=F.cross_entropy)
    assert set(own.train.take(INDEX)[0]) == {"x", "label"}
    assert set(given.train.take(INDEX)[0]) == {"x"}
    picked = Task(net, data, data, unpack=lambda batch: (batch["x"], batch["label"]))
    assert torch.equal(picked.test.take(INDEX)[0], X[INDEX])


def test_the_model_is_called_by_one_convention() -> None:
    class Seen(nn.Module):
        def forward(self, a: object, b: object = None) -> tuple[object, object]:
            return a, b

    packed = pack_sequence([X[0], X[1]])
    assert call(Seen(), (1, 2)) == call(Seen(), [1, 2]) == call(Seen(), {"b": 2, "a": 1}) == (1, 2)
    assert call(Seen(), X)[0] is X
    assert call(Seen(), packed)[0] is packed


def ragged(i: int) -> tuple[Tensor, int]:
    return X[i, : 1 + i % 5], int(Y[i])


def padded(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    rows, labels = zip(*samples, strict=True)
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), torch.tensor(labels)


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sum(1, keepdim=True))


def test_sequences_of_several_lengths_need_a_collate_fn() -> None:
    data = Samples(ragged)
    task = Task(Mean, data, data, loss=F.cross_entropy, metric=F.cross_entropy)
    with pytest.raises(ArgumentError, match=r"train: the samples of a batch must have one shape.*give collate_fn="):
        prepared(task, methods=["LN"], batch_sizes=[8])
    part = Part.of("train", data, padded)
    assert part.take(torch.arange(3))[0].shape == (3, 3)
    assert part.take(torch.tensor([[4, 0]]))[0].shape == (1, 2, 5)
    loader = Part.of("train", DataLoader(data, collate_fn=padded))
    assert loader.collate is padded


def test_a_loader_gives_its_data_and_weights_and_no_order_of_its_own() -> None:
    data = TensorDataset(X, Y)
    assert len(Part.of("train", DataLoader(data, sampler=SubsetRandomSampler(range(10))))) == 10
    weights = Y.double()
    task = Task(net, DataLoader(data, sampler=WeightedRandomSampler(weights, 60)), (X, Y))
    assert task.train.weights is not None
    order = batches(len(task.train), 8, 20, 0, task.train.weights)
    assert order.shape == (20, 8)
    assert task.train.take(order)[1].eq(1).all()

    class Odd(SequentialSampler):
        pass

    for loader, message in (
        (DataLoader(data, sampler=Odd(data)), "whose order the study can repeat.*got one with a Odd"),
        (DataLoader(data, batch_size=None), "must be a DataLoader that makes the batches"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Task(net, loader, (X, Y))


class Endless(IterableDataset[tuple[Tensor, int]]):
    read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            type(self).read += 1
            x = torch.randn(6, generator=generator)
            yield x, int(x.sum() > 0)


def test_an_iterable_is_read_as_far_as_a_run_needs() -> None:
    Endless.read = 0
    task = Task(net, Endless(), (X, Y))
    (workload,), _ = prepared(task, methods=["LN"], batch_sizes=[2, 4], steps=50)
    # 50 steps of 4 samples, and a quarter more for the validation.
    assert Endless.read == 250
    assert (len(workload.task.train), len(workload.task.validation)) == (200, 50)
    few = Task(net, Endless(), (X, Y), validation=(X, Y), samples=30)
    assert len(prepared(few, methods=["LN"], batch_sizes=[4])[0][0].task.train) == 30


def test_an_iterable_that_ends_too_early_is_refused() -> None:
    task = Task(net, ((X[i], int(Y[i])) for i in range(60)), (X, Y))
    with pytest.raises(ArgumentError, match=r"train must give the 200 samples .* ended after 60: .*samples=48"):
        prepared(task, methods=["LN"], batch_sizes=[4], steps=40)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, Y[:5]), r"tensors or arrays with one length, got lengths \[5, 60\]"),
        ((X, torch.tensor(3)), r"tensors or arrays with one length, got tensor\(3\)"),
        ((np.array(["a", "b"], dtype=object), Y[:2]), "must hold numbers, got an array of object"),
        ("text", "must be a torch Dataset, a DataLoader or tensors"),
    ],
)
def test_what_is_no_data_is_refused(given: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Part.of("train", given)


def test_inputs_that_the_model_cannot_take_are_named_with_their_call() -> None:
    task = Task(net, (X, X, Y), (X, X, Y), loss=F.cross_entropy)
    with pytest.raises(ArgumentError, match=r"model must take a batch.*model\(\(2, 6\), \(2, 6\)\) raised TypeError"):
        prepared(task, methods=["LN"], batch_sizes=[4])
