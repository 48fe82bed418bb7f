"""The Transformers of the suite: placements against the tool that moves norms, norms of queries and keys, padding."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from made_up import prepared
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import normkit
from normkit import study
from normkit.errors import ArgumentError
from normkit.study import named_task
from normkit.study.suite import data
from normkit.study.suite.transformers import Attention, Transformer, classifier, parts_of, transformer
from normkit.study.task import embedded
from normkit.study.task.variants import method_name
from normkit.study.training.copies.stacked import RecordedSteps, Stacked, can_be_stacked

TOKENS = torch.randint(1, 7, (3, 6), generator=torch.Generator().manual_seed(0))
SIZES = {"width": 16, "depth": 2, "steps": 6}


def small(variant: str, seed: int = 0) -> nn.Module:
    return classifier(variant, seed, **SIZES, tokens=7, classes=3)


class Reference(nn.Module):
    """The causal Transformer with the weights of one of the suite, pre-norm, as `replace_placement` can change it."""

    def __init__(self, made: nn.Module, norm: type[nn.Module]) -> None:
        super().__init__()
        self.table, self.places, self.head, self.last = made.table, made.places, made.head, norm(16)
        pairs = zip(made.blocks[::2], made.blocks[1::2], strict=True)
        self.blocks = nn.ModuleList([Layer(attention, perceptron, norm) for attention, perceptron in pairs])

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        x = self.table(values) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x)).transpose(1, 2)


class Layer(nn.Module):
    def __init__(self, attention: nn.Module, perceptron: nn.Module, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(16), norm(16)
        self.mixed, self.out, self.wide, self.narrow = (
            *(attention.mixed, attention.out),
            *(perceptron.wide, perceptron.narrow),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in self.mixed(self.first(x)).chunk(3, 2))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "peri"])
@pytest.mark.parametrize("method", ["layer_norm", "rms_norm"])
def test_placements_are_those_of_the_tool(method: str, placement: str) -> None:
    built = transformer(f"{method}:{placement}", 0, **SIZES).double()
    norm = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}[method]
    plain = Reference(transformer(method, 0, **SIZES), norm).double()
    changed, _ = normkit.replace_placement(plain, placement, example=TOKENS, calibrate=False, strict=True)
    # Float64, another order of a few operations.
    torch.testing.assert_close(built(TOKENS), changed(TOKENS), rtol=1e-12, atol=1e-12)
    assert placement == "pre" or not torch.allclose(built(TOKENS), plain(TOKENS), atol=1e-3)


def test_attention_is_torchs_with_a_layer_norm_of_each_head() -> None:
    model = transformer("layer_norm:qk", 0, **SIZES).double()
    attention = next(module for module in model.modules() if isinstance(module, Attention))
    norms = attention.query.norm, attention.key.norm
    for norm in norms:
        assert isinstance(norm, normkit.LayerNorm)
        assert norm.normalized_shape == (4,)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in attention.mixed(x).chunk(3, 2))
    q, k = (nn.functional.layer_norm(t, (4,), n.weight, n.bias, n.eps) for t, n in zip((q, k), norms, strict=True))
    seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = attention.out(seen.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention.branch(x, hidden, None), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", ["none", *embedded.TRANSFORMER_METHODS, "layer_norm:sandwich", "batch_norm"])
def test_equal_seeds_give_equal_weights_with_every_variant(variant: str) -> None:
    plain, other = ([p for p in small(v, 3).parameters() if p.dim() > 1] for v in ("none", variant))
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    assert not torch.equal(next(small(variant, 4).parameters()), plain[0])


@pytest.mark.parametrize("variant", ["none", "layer_norm:post", "rms_norm:qk", "dynamic_tanh:peri", "batch_norm"])
def test_padding_changes_nothing(variant: str) -> None:
    """In training mode, in which batch norm takes its statistics over the positions."""
    short = small(variant).train().double()
    longer = classifier(variant, 0, **SIZES | {"steps": 9}, tokens=7, classes=3).train().double()
    longer.load_state_dict({k: v for k, v in short.state_dict().items() if k != "places.weight"}, strict=False)
    with torch.no_grad():
        longer.places.weight[:6] = short.places.weight
    tokens = TOKENS.clone()
    tokens[0, 4:] = 0
    padded = torch.cat([tokens, torch.zeros(3, 3, dtype=torch.long)], 1)
    torch.testing.assert_close(longer(padded), short(tokens), rtol=1e-10, atol=1e-10)
    # What is at the padded positions does not count either.
    with torch.no_grad():
        longer.table.weight[0] += 100.0
        longer.places.weight[6:] += 100.0
    torch.testing.assert_close(longer(padded), short(tokens), rtol=1e-10, atol=1e-10)


def test_a_causal_model_sees_no_later_character() -> None:
    model = transformer("layer_norm:qk", 0, **SIZES)
    changed = TOKENS.clone()
    changed[:, 4] += 1
    before, after = model(TOKENS), model(changed)
    torch.testing.assert_close(after[..., :4], before[..., :4])
    assert not torch.allclose(after[..., 4:], before[..., 4:])


def test_options_of_a_variant() -> None:
    assert parts_of("layer_norm:peri") == ("layer_norm", "peri", False)
    assert method_name("LN:qk") == "layer_norm:qk"
    with pytest.raises(ArgumentError, match="queries and keys are normalized by layer_norm or rms_norm, got 'dynamic_"):
        small("dynamic_tanh:qk")
    with pytest.raises(ArgumentError, match="or qk for norms of queries and keys, got 'LN:kq'"):
        method_name("LN:kq")


@pytest.mark.parametrize("variant", ["layer_norm", "dynamic_erf:post", "rms_norm:peri", "layer_norm:qk"])
def test_stacked_copies_are_trained_at_once(variant: str) -> None:
    for build in (small, lambda variant, seed: transformer(variant, seed, **SIZES)):
        models = [build(variant, seed) for seed in range(2)]
        parameters, buffers = stack_module_state(models)
        y = vmap(lambda p, b, first=models[0]: functional_call(first, (p, b), (TOKENS,)))(parameters, buffers)
        torch.testing.assert_close(y[1], models[1](TOKENS))


def test_the_classifier_is_stacked_and_recorded() -> None:
    task, variant = embedded.sequences(1, 16), "layer_norm:qk"
    inputs, targets = task.train.take(torch.arange(4))
    assert can_be_stacked(partial(task.build, variant), task.loss, inputs, targets)
    recorded: RecordedSteps = {}
    copies = Stacked([task.build(variant, seed) for seed in (0, 1)], recorded)
    copies.optimize(task.optimizer, [(0.01, ())] * 2)
    copies.step(task.loss, inputs.expand(2, *inputs.shape), targets.expand(2, *targets.shape))
    assert [step is not None for _, step in recorded.values()] == [True]


def test_neighbours_tell_the_classes_apart_and_symbols_do_not() -> None:
    inputs, labels = data.chains(4000, 0, symbols=6, classes=4, longest=24, share=0.75)
    lengths = (inputs > 0).sum(1)
    assert (lengths.min(), lengths.max()) == (8, 24)
    assert bool(((inputs > 0) == (torch.arange(24) < lengths.unsqueeze(1))).all())
    for label in range(4):
        counts = torch.bincount(inputs[labels == label].flatten(), minlength=7)[1:]
        # About 2700 of 16 000 symbols each. Runs of the rule correlate them, which multiplies the standard error of 2 %
        # by at most sqrt((1 + 0.75) / (1 - 0.75)) = 2.6: three of these are 15 %.
        assert (counts / counts.float().mean() - 1).abs().max() < 0.15
    both = (inputs[:, 1:] > 0) & (inputs[:, :-1] > 0)
    steps = (inputs[:, 1:] - inputs[:, :-1]) % 6
    counts = torch.stack([((steps == c + 1) & both).sum(1) for c in range(4)], 1)
    # The likeliest class has the most pairs that follow its rule.
    assert (counts.argmax(1) != labels).double().mean() < 0.02


def test_built_in_tasks_take_arguments_after_a_colon() -> None:
    task = named_task("sequences:depth=4,width=16,optimizer=sgd")
    assert (task.arms.keywords["depth"], task.arms.keywords["width"], task.origin) == (
        4,
        16,
        "sequences:depth=4,width=16,optimizer=sgd",
    )
    assert "four blocks of width 16" in task.description
    assert "SGD" in task.description
    for target, found in (
        ("characters:depth=5", "depth of this Transformer must be one of 1, 2, 3, 4, got 5"),
        ("characters:width=17", "width of this Transformer must be one of 16, 32, 64, got 17"),
        ("sequences:optimizer=adam", "optimizer of this Transformer must be one of adamw, sgd, got 'adam'"),
        ("sequences:dept=2", "takes depth, width, optimizer, got 'dept=2'.*'depth'.*write sequences:depth=2,width=32"),
        ("sequences:depth", "takes depth, width, optimizer, got 'depth'"),
        ("forecast:depth=2", "takes no argument, got 'depth=2'"),
    ):
        with pytest.raises(ArgumentError, match=found):
            named_task(target)


def test_transformers_bring_their_variants_and_claims() -> None:
    task = named_task("transformers")
    workloads, asked = prepared(task, batch_sizes=(32,))
    assert workloads[0].design.methods == embedded.TRANSFORMER_METHODS
    assert {each.claim for each in asked} == set(embedded.TRANSFORMER_CLAIMS)
    names = {workload.name for workload in workloads[1:]}
    assert names >= {f"{t}-adamw-{w}" for t in ("characters", "sequences") for w in (16, 32, 64)}
    assert names >= {"tokens", "characters-sgd-16", "sequences-sgd-64", "cold-16", "warm-64", "range-sgd-32"}
    assert {workload.design.seeds for workload in workloads[1:] if "range" not in workload.name} == {12}
    (main,), none = prepared(task, methods=["LN:qk"], batch_sizes=(32,))
    assert (main.design.methods, none) == (("none", "layer_norm:qk"), ())
    (_, *others), one = prepared(task, methods=["LN"], claims=["QK-1"], batch_sizes=(32,))
    assert {each.claim for each in one} == {"QK-1"}
    assert {workload.name[:5] for workload in others} == {"range"}
    # The line of a report names the methods, so it asks for the claims too.
    line = study._command(workloads[0].design, task, None, some=False, full=False)
    assert line.startswith("normkit compare transformers --methods none,layer_norm,")
    assert line.endswith(" --claims all")
    assert prepared(task, methods=["LN"], claims=True, batch_sizes=(32,))[1] == asked
    with pytest.raises(ArgumentError, match=r"with transformers the claims RMS-1, .* are measured, got BN-4: leave"):
        prepared(task, methods=["LN"], claims=["BN-4"], batch_sizes=(32,))
    assert prepared(replace(task, claims=()), methods=["LN"], batch_sizes=(32,))[1] == ()
    assert isinstance(embedded.characters().build("layer_norm:post", 0), Transformer)


@pytest.mark.slow
def test_variants_of_a_transformer_are_compared_from_end_to_end(tmp_path: Path) -> None:
    found = normkit.compare(
        named_task("sequences:depth=1,width=16"),
        methods=["LN", "LN:qk", "DyT:post", "BN"],
        batch_sizes=[8],
        seeds=2,
        trials=3,
        steps=40,
        workers=1,
        out=tmp_path,
        progress=False,
    )
    assert not found.failures
    names = ["none", "layer_norm", "layer_norm:qk", "dynamic_tanh:post", "batch_norm"]
    assert [cell.method for cell in found.cells] == names
    assert "compare sequences:depth=1,width=16 --methods none,layer_norm,layer_norm:qk," in found.command
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Layer norm (QK-norm)" in page
    assert "Dynamic tanh (post-norm)" in page
