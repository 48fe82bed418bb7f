"""Plans: the four-level view must say of every element the same as the region does."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normkit.pattern import parse
from normkit.plan import Prepare, plan

PATTERNS = [
    "[b] c [...]",
    "b [c ...]",
    "... [c]",
    "... [c1 c2]",
    "b [c] ...",
    "b c [...]",
    "b (g=2 [c]) [...]",
    "[b] c [h] w",
    "b [c1] h [c2]",
]


def strides_of(shape, order):
    """Dense strides with the dimensions of `order` from outermost to innermost."""
    steps, inside = [0] * len(shape), 1
    for dim in reversed(order):
        steps[dim] = inside
        inside *= shape[dim]
    return tuple(steps)


def check(text, shape, strides, varying=None, **options):
    region = parse(text)
    p = plan(region, shape, strides, varying, **options)
    _, r0, k1, r1 = p.view
    assert math.prod(p.view) == math.prod(shape)
    levels = region.levels(shape, varying)
    sizes = [level.size for level in levels]
    assert p.sizes == tuple(sizes)
    # Where each element lies once the plan's preparation is done: the axes in the plan's order, densely.
    steps = strides_of(sizes, [*[i for i in range(len(sizes)) if i not in p.memory], *p.memory])
    cell_of, weight_of = {}, {}
    for place in itertools.product(*map(range, sizes)):
        offset = sum(i * s for i, s in zip(place, steps, strict=True))
        cell = offset // (r0 * k1 * r1) * k1 + offset // r1 % k1
        slab, within = divmod(offset, math.prod(shape) // p.slabs)
        weight = slab * p.period + within // p.inner % p.period
        kept = tuple(place[i] for i in p.kept)
        feature = tuple(place[i] for i in p.features)
        assert cell_of.setdefault(kept, cell) == cell
        if p.features:
            assert weight_of.setdefault(feature, weight) == weight
    assert sorted(cell_of.values()) == list(range(p.cells))
    assert [cell_of[k] for k in sorted(cell_of)] == list(range(p.cells))
    if p.features:
        assert [weight_of[k] for k in sorted(weight_of)] == list(range(p.period * p.slabs))
    if p.columns:
        width = k1 * r1
        assert width % (p.period * p.inner) == 0 or p.inner % width == 0
    return p


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATTERNS), st.data())
def test_every_element_has_the_cell_and_the_weight_of_its_region(text, data):
    dims = len(parse(text).dims)
    rank = data.draw(st.integers(max(dims, 3), 4)) if "..." in text else dims
    shape = tuple(data.draw(st.sampled_from([1, 2, 4, 6])) for _ in range(rank))
    if "g=2" in text:
        shape = (shape[0], max(shape[1], 2), *shape[2:])
    order = data.draw(st.permutations(range(rank)))
    check(text, shape, strides_of(shape, order))
    varying = data.draw(st.lists(st.booleans(), min_size=rank, max_size=rank))
    check(text, shape, strides_of(shape, order), varying)
    check(text, shape, strides_of(shape, order), varying, slabs_in_regions=False)


def test_weights_of_each_sample_change_within_the_columns_of_batch_norm():
    """Channels last: each channel is a column, and each sample a slab of rows."""
    shape, strides = (2, 3, 4, 5), (60, 1, 15, 3)
    p = check("[b] c [...]", shape, strides, (True, True, False, False))
    assert (p.prepare, p.view, p.slabs, p.period) == (Prepare.AS_IS, (1, 40, 3, 1), 2, 3)
    copied = check("[b] c [...]", shape, strides, (True, True, False, False), slabs_in_regions=False)
    assert (copied.prepare, copied.slabs) == (Prepare.REGROUP, 1)


@pytest.mark.parametrize(
    ("text", "shape", "order", "view", "columns"),
    [
        ("... [c]", (8, 100, 768), (0, 1, 2), (800, 1, 1, 768), False),
        ("[b] c [...]", (32, 64, 56, 56), (0, 1, 2, 3), (1, 32, 64, 3136), False),
        ("[b] c [...]", (32, 64, 56, 56), (0, 2, 3, 1), (1, 100352, 64, 1), True),
        ("b c [...]", (32, 64, 56, 56), (0, 2, 3, 1), (32, 3136, 64, 1), True),
        ("b (g=8 [c]) [...]", (32, 64, 56, 56), (0, 1, 2, 3), (256, 1, 1, 25088), False),
        ("b (g=8 [c]) [...]", (32, 64, 56, 56), (0, 2, 3, 1), (32, 3136, 8, 8), True),
        ("b [c] ...", (32, 64, 56, 56), (0, 1, 2, 3), (32, 64, 3136, 1), True),
        ("b [c] ...", (32, 64, 56, 56), (0, 2, 3, 1), (100352, 1, 1, 64), False),
    ],
)
def test_the_methods_have_the_views_that_the_kernels_are_made_for(text, shape, order, view, columns):
    p = plan(parse(text), shape, strides_of(shape, order))
    assert (p.view, p.columns, p.prepare) == (view, columns, Prepare.AS_IS)


def test_a_fifth_level_is_regrouped_and_the_plan_says_so():
    p = plan(parse("[b] c [h] w"), (4, 32, 8, 8), strides_of((4, 32, 8, 8), (0, 1, 2, 3)))
    assert p.prepare is Prepare.REGROUP
    assert "a copy with kept before reduced axes first" in str(p)


@pytest.mark.parametrize("strides", [(0, 1), (20, 2), (5, 1)])
def test_gaps_and_overlaps_are_made_dense_first(strides):
    assert plan(parse("b [c]"), (3, 10), strides).prepare is Prepare.DENSE


def test_sizes_of_one_do_not_count_whatever_their_stride():
    odd = plan(parse("b (g=2 [c]) [...]"), (3, 8, 1, 1), (8, 1, 977, 13))
    assert odd.view == plan(parse("b (g=2 [c]) [...]"), (3, 8, 1, 1), (8, 1, 1, 1)).view
