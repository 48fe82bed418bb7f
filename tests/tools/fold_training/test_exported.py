"""Pairs in the graph of an exported model are found, trained and folded as those of modules are."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pairs_of_layers import DOUBLE, rounded, trained
from torch import Tensor, nn

import normkit
from normkit.errors import StateError
from normkit.tools.fold_training import FoldedNorm, TrainableFold

# torch warns of its own code when it copies an exported graph.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.up, self.bn = nn.ConvTranspose2d(4, 6, 2, 2, output_padding=1, groups=2), nn.BatchNorm2d(6)
        self.conv, self.last = nn.Conv2d(6, 4, 3, 2, 1, 1, 2), nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.conv(torch.relu(self.bn(self.up(self.stem(x))))))
        return self.head(x.mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6))


MODELS = {"cnn": (CNN, (3, 6, 6), 3), "mlp": (mlp, (5,), 2)}


def exported(model: nn.Module, x: Tensor) -> nn.Module:
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_trains_as_the_model(name: str, training: bool):
    made, shape, count = MODELS[name]
    model = made().double()
    batches = list(torch.randn(3, 8, *shape, dtype=torch.float64))
    graph = exported(model.train(training), batches[0])
    folded, report = normkit.fold_for_training(graph, None, weight_fake_quant=lambda weight: weight)
    assert len(report.pairs) == count
    assert not report.refusals
    assert sum(isinstance(module, TrainableFold) for module in folded.modules()) == count
    assert not any("batch_norm" in str(node.target) for node in folded.graph.nodes)
    assert folded.state_dict().keys() == model.state_dict().keys()
    assert not any(isinstance(module, FoldedNorm) for module in graph.modules())
    ours, theirs = (dict(net.named_parameters()) for net in (folded, model))
    assert ours.keys() == theirs.keys()
    trained(folded, batches)
    trained(model, batches)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(folded.state_dict()[key], value, **DOUBLE)
    torch.testing.assert_close(folded.eval()(batches[0]), model.eval()(batches[0]), **DOUBLE)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_finished_for_inference(name: str):
    made, shape, _ = MODELS[name]
    model, x = made(), torch.randn(8, *shape)
    trained(model, [x])
    folded, _ = normkit.fold_for_training(exported(model.eval(), x), None, weight_fake_quant=rounded)
    finished = normkit.finish(folded.eval())
    assert torch.equal(finished(x), folded(x))
    assert not any("running" in key for key in finished.state_dict())
    plain, _ = normkit.fold_for_training(exported(model, x), None)
    torch.testing.assert_close(normkit.finish(plain.eval())(x), model(x))


class Refused(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.bn = kind, nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twin = nn.Conv2d(3, 3, 1)
        self.twin.weight = self.conv.weight
        self.fc, self.rows = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "also goes to":
            return self.bn(y) + y
        if self.kind == "does not come straight from one":
            return self.bn(y.relu())
        if self.kind == "is also read by another operation":
            return self.bn(y) + self.twin(x)
        if self.kind == "is computed":
            return self.bn(F.conv2d(x, self.conv.weight * 2))
        return self.bn(F.linear(x, self.fc.weight, self.fc.bias))


@pytest.mark.parametrize("training", [True, False])
def test_norms_of_normkit_in_a_graph_are_reported(training: bool):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), normkit.BatchNorm2d(3), normkit.GroupNorm(1, 3)).train(training)
    x = torch.randn(2, 3, 3, 4)
    folded, report = normkit.fold_for_training(torch.export.export(model, (x,)).module(), None, inplace=True)
    assert [refusal.name for refusal in report.refusals] == ["1"]
    assert "call fold_for_training on the model, and export the result" in report.refusals[0].reason
    # Nothing in it would change.
    with pytest.raises(NotImplementedError, match="is not supported"):
        folded.train()


def test_statistics_that_no_step_would_update_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=None)).eval()
    x = torch.randn(2, 3, 3, 4)
    graph = torch.export.export(model, (x,)).module()
    _, report = normkit.fold_for_training(graph, None)
    assert "its momentum in the graph is 0, as torch exports momentum=None" in report.refusals[0].reason
    folded, report = normkit.fold_for_training(graph, None, statistics="frozen", strict=True)
    torch.testing.assert_close(folded.train()(x), model(x))


@pytest.mark.parametrize(
    "reason",
    [
        "also goes to",
        "does not come straight from one",
        "is also read by another operation",
        "is computed",
        "normalizes another dimension",
    ],
)
def test_what_is_refused_in_a_graph(reason: str):
    x = torch.randn(2, 3, 3, 4)
    graph = torch.export.export(Refused(reason), (x,)).module()
    folded, report = normkit.fold_for_training(copy.deepcopy(graph), None)
    assert not report.pairs
    assert [refusal.name for refusal in report.refusals] == ["bn"]
    assert reason in report.refusals[0].reason
    with pytest.raises(StateError, match="strict=True allows no norm to stay"):
        normkit.fold_for_training(graph, None, strict=True, inplace=True)
    torch.testing.assert_close(folded(x), graph(x))
