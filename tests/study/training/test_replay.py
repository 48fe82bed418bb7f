"""A replayed training step computes what was recorded."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import normkit
from normkit.study.suite.networks import convnet, mlp
from normkit.study.training.copies import recording, replay, stacked

COPIES, BATCH = 3, 4
NETS = {
    "mlp": (partial(mlp, inputs=6, width=8, depth=2), (6,)),
    "convnet": (partial(convnet, channels=((4, 1), (8, 2))), (1, 6, 6)),
}


def copies_and_batch(net: str, method: str) -> tuple[stacked.Stacked, Tensor, Tensor]:
    build, shape = NETS[net]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(COPIES, BATCH, *shape, generator=generator)
    targets = torch.randint(10, (COPIES, BATCH), generator=generator)
    return stacked.Stacked([build(method, seed) for seed in range(COPIES)]), inputs, targets


@pytest.mark.parametrize("method", ["none", "batch_norm", "group_norm"])
@pytest.mark.parametrize("net", list(NETS))
def test_the_bits_are_those_of_the_recorded_step(net: str, method: str) -> None:
    copies, inputs, targets = copies_and_batch(net, method)
    mapped = copies._mapped(F.cross_entropy)
    given = (copies.parameters, copies.buffers, inputs, targets)
    with torch.no_grad():
        graph = make_fx(mapped)(*recording.copied(given))
        one, other = recording.copied(given), recording.copied(given)
        losses, gradients = graph(*one)
        step = replay.Replay(graph, recording.copied(given)).bind(*other[:2])
        found, slopes = step(*other[2:])
    assert torch.equal(losses, found)
    for a, b in zip(gradients, slopes, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    for name, buffer in one[1].items():
        assert torch.equal(buffer, other[1][name]), name


def test_no_step_makes_a_view_of_a_parameter_or_two_views_of_one_tensor() -> None:
    copies, inputs, targets = copies_and_batch("mlp", "batch_norm")
    recorded = recording.record(copies._mapped(F.cross_entropy), (copies.parameters, copies.buffers, inputs, targets))
    assert recorded is not None
    nodes = list(recorded._step.__self__.graph.nodes)  # type: ignore[attr-defined]
    views = [node for node in nodes if node.target is torch.as_strided]
    assert views
    assert not any(node.target in replay._VIEWS for node in nodes)
    assert not any(view.args[0].target is torch.as_strided for view in views)
    arguments = [view.args[0].name for view in views if view.args[0].op == "placeholder"]
    assert all("inputs" in name or "targets" in name for name in arguments), arguments


def test_a_batch_may_lie_differently_in_memory() -> None:
    copies, inputs, targets = copies_and_batch("mlp", "none")
    mapped = copies._mapped(F.cross_entropy)
    recorded = recording.record(mapped, (copies.parameters, copies.buffers, inputs, targets))
    assert recorded is not None
    step = recorded.bind(copies.parameters, copies.buffers)
    turned = torch.zeros(6, BATCH, COPIES + 1).permute(2, 1, 0)[1:]
    with torch.no_grad():
        losses, _ = step(inputs, targets)
        again, _ = step(turned.copy_(inputs), targets)
    assert torch.equal(losses, again)


def test_parameters_in_another_layout_are_refused() -> None:
    copies, inputs, targets = copies_and_batch("mlp", "none")
    recorded = recording.record(copies._mapped(F.cross_entropy), (copies.parameters, copies.buffers, inputs, targets))
    assert recorded is not None
    name = next(name for name, parameter in copies.parameters.items() if parameter.ndim == 3)
    copies.parameters[name] = copies.parameters[name].detach().transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(AssertionError, match="another layout"):
        recorded.bind(copies.parameters, copies.buffers)


def test_a_copied_transpose_of_a_product_is_computed_as_the_transposed_product() -> None:
    def step(parameters: dict[str, Tensor], buffers: object, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x.sum((1, 2)), [torch.bmm(x, y).transpose(1, 2).contiguous()]

    x, y = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    recorded = recording.record(step, ({}, {}, x, y))
    assert recorded is not None
    targets = [node.target for node in recorded._step.__self__.graph.nodes]  # type: ignore[attr-defined]
    assert torch.ops.aten.clone.default not in targets
    _, (found,) = recorded.bind({}, {})(x, y)
    # Four products in another order.
    torch.testing.assert_close(found, (x @ y).transpose(1, 2), rtol=1e-5, atol=1e-6)
    assert found.is_contiguous()


def test_images_of_all_copies_are_convolved_in_channels_last() -> None:
    build, shape = NETS["convnet"]
    models = [build("batch_norm", seed) for seed in range(2)]
    copies = stacked.Stacked(models, {})
    inputs, targets = torch.randn(2, BATCH, *shape), torch.zeros(2, BATCH, dtype=torch.long)
    copies.optimize(partial(torch.optim.SGD), [(0.1, ())] * 2)
    losses = copies.step(F.cross_entropy, inputs, targets)
    weights = [p for p in copies.parameters.values() if p.ndim == 5 and p.shape[2] > 1]
    assert weights
    assert all(weight[0].is_contiguous(memory_format=torch.channels_last) for weight in weights)
    alone = [F.cross_entropy(build("batch_norm", seed)(inputs[seed]), targets[seed]) for seed in range(2)]
    # The same sums in another order, through two convolutions.
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-5, atol=1e-6)


def test_a_model_that_flattens_images_by_a_view_is_stacked() -> None:
    class Flat(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).relu().view(len(x), -1))

    inputs, targets = torch.randn(BATCH, 2, 6, 6), torch.zeros(BATCH, dtype=torch.long)
    assert stacked.can_be_stacked(Flat, F.cross_entropy, inputs, targets)


def test_mapped_layers_update_their_statistics_as_they_do_alone_to_the_bit() -> None:
    layers = [normkit.BatchNorm1d(5, momentum=0.3) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    values = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1)) * 2 + 1
    with torch.no_grad():
        vmap(lambda p, b, x: functional_call(layers[0], (p, b), (x,)))(parameters, buffers, values)
    alone = [normkit.BatchNorm1d(5, momentum=0.3) for _ in range(3)]
    for layer, x in zip(alone, values, strict=True):
        layer(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(buffers[name], torch.stack([layer.get_buffer(name) for layer in alone])), name
