"""In which dimension the features of each value of a traced run are, and the norms that normalize another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.conv import _ConvNd

from normkit import catalog
from normkit.tools.audit.measure.facts import Seen, Subject
from normkit.tools.audit.rules.rule import Hit
from normkit.tools.model.graph.call_graph import Node

RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "_unsafe_view"}

ELEMENTWISE = {
    *("add", "add_", "sub", "sub_", "__rsub__", "mul", "mul_", "div", "div_", "neg", "pow", "sqrt", "exp", "lerp"),
    *("relu", "relu_", "relu6", "gelu", "silu", "silu_", "hardswish", "mish", "softplus", "sigmoid", "tanh", "elu"),
    *("leaky_relu", "clamp", "softmax", "where", "masked_fill", "mean", "amax", "sum", "narrow", "roll", "flip"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "expand", "expand_as"),
    *("contiguous", "clone", "to", "float", "half", "bfloat16", "type", "type_as", "detach"),
    *(method.name for method in catalog.METHODS if not method.of_weights),
    *("interpolate", "pad"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "__getitem__"),
}
"""Functions that leave the features where they are, if the number of dimensions and of features stays."""

JOINS = {"cat", "concat", "concatenate", "chunk", "split", "tensor_split"}
"""Functions that leave the features where they are, whose number may change."""

LAST = nn.Embedding | nn.EmbeddingBag | nn.RNNBase | nn.Bilinear


@dataclass(frozen=True)
class Features:
    """Where the features of a value are.

    Attributes:
        axis: their dimension; None if it is not known.
        lost: not known, and dimensions have been exchanged: a linear layer may work along positions.
        plain: the dimensions are in the order in which the layer that made the features gave them.
    """

    axis: int | None = None
    lost: bool = False
    plain: bool = True


UNKNOWN, LOST = Features(), Features(lost=True)


def features(subject: Subject) -> list[Features]:
    """Of the value of each node of the traced run, found from layers whose features have a fixed place.

    Convolutions have them in dimension 1; linear layers, embeddings and recurrent layers in the last. What reorders
    or joins dimensions is followed; where that is not possible, or inputs disagree, nothing is claimed.

    Args:
        subject: with a traced run.

    Returns:
        One entry for each node.
    """
    assert subject.graph is not None
    known = {norm.module for norm in subject.norms if norm.info.kind is not None}
    found: list[Features] = []
    for node in subject.graph.nodes:
        given = [found[index] if index >= 0 else UNKNOWN for index in node.inputs]
        if not node.made or not node.shapes:
            found.append(UNKNOWN)
        elif node.module is not None:
            found.append(_of_module(node, node.module, given[0], node.module in known))
        else:
            found.append(_of_function(node, given))
    return found


def _of_module(node: Node, module: nn.Module, given: Features, is_norm: bool) -> Features:
    if isinstance(module, nn.Linear):
        return _linear(node, given)
    if isinstance(module, _ConvNd):
        return _convolution(node, given, module.kernel_size)
    if isinstance(module, LAST):
        return Features(len(node.made[0]) - 1)
    if isinstance(module, nn.Flatten | nn.Unflatten):
        return _reshaped(node, given)
    sizes = node.shapes[0]
    # A layer of another library may exchange dimensions: only a size that no other dimension has identifies them.
    unique = given.axis is not None and sizes.count(sizes[given.axis]) == 1
    if is_norm or unique or type(module).__module__.startswith("torch.nn."):
        return _joined(node, [given]) if len(node.made[0]) == len(sizes) else LOST
    return LOST


def _of_function(node: Node, given: list[Features]) -> Features:
    if node.turn is not None:
        return _turned(given[0], node.turn)
    if node.name in RESHAPES:
        return _reshaped(node, given[0])
    if node.name == "linear":
        return _linear(node, given[0])
    if node.name in ("conv1d", "conv2d", "conv3d") and len(node.shapes) > 1:
        return _convolution(node, given[0], node.shapes[1][2:])
    if node.name == "embedding":
        return Features(len(node.made[0]) - 1)
    return _joined(node, given) if node.name in ELEMENTWISE | JOINS else LOST


def _linear(node: Node, given: Features) -> Features:
    last = len(node.made[0]) - 1
    # Along another dimension than that of the features it mixes positions, and may make features of them.
    return LOST if given.lost or given.axis not in (None, len(node.shapes[0]) - 1) else Features(last)


def _convolution(node: Node, given: Features, kernel: tuple[int, ...]) -> Features:
    axis = len(node.made[0]) - len(kernel) - 1
    mixes_positions = given.axis not in (None, axis) or (given.lost and all(size == 1 for size in kernel))
    return LOST if mixes_positions else Features(axis)


def _turned(given: Features, turn: tuple[int, ...]) -> Features:
    if turn == tuple(range(len(turn))):
        return given
    return LOST if given.axis is None else Features(turn.index(given.axis), plain=False)


def _reshaped(node: Node, given: Features) -> Features:
    before, after, axis = node.shapes[0], node.made[0], given.axis
    if axis is None:
        return given
    # Where all dimensions up to the features', or all from it on, are as before, it means what it meant.
    if after[: axis + 1] == before[: axis + 1]:
        return given
    from_end = len(before) - axis
    return replace(given, axis=len(after) - from_end) if after[-from_end:] == before[axis:] else UNKNOWN


def _joined(node: Node, given: list[Features]) -> Features:
    """Of a call on values whose dimensions correspond from the right."""
    made, first = node.made[0], node.shapes[0]
    known = [(each, shape) for each, shape in zip(given, node.shapes, strict=False) if each.axis is not None]
    # Counted from the end, as sizes are when they are broadcast.
    places = {len(shape) - (each.axis or 0) for each, shape in known}
    if not known:
        return LOST if any(each.lost for each in given) else UNKNOWN
    from_end = max(places)
    kept = len(made) >= len(first) or from_end == 1
    if len(places) > 1 or from_end > len(made) or not kept:
        return LOST
    if node.name not in JOINS and made[-from_end] != known[0][1][-from_end]:
        return LOST
    return Features(len(made) - from_end, plain=all(each.plain for each, _ in known))


def over_width(subject: Subject) -> Iterator[Hit]:
    """Layer norms over the last dimension of what has its channels in an earlier one, as a convolution gives it."""
    for norm, shape, axis, plain in _misplaced(subject):
        # Whoever has exchanged the dimensions has chosen the one that is normalized, as on spectrograms.
        if not norm.is_batch and plain:
            message = (
                f"normalizes the last of the dimensions {shape}, and the {shape[axis]} channels are dimension {axis}"
            )
            yield Hit(norm.name, message, {"shape": list(shape), "channels": shape[axis]})


def over_time(subject: Subject) -> Iterator[Hit]:
    """Norms over the positions of a sequence: layer norms after an exchange, batch norms where features are last."""
    for norm, shape, axis, plain in _misplaced(subject):
        if norm.is_batch or (len(shape) == 3 and not plain):
            does = (
                "takes dimension 1 of {} for the channels" if norm.is_batch else "normalizes the last dimension of {}"
            )
            message = f"{does.format(shape)}, and the {shape[axis]} features are dimension {axis}"
            yield Hit(norm.name, message, {"shape": list(shape), "features": axis})


def _misplaced(subject: Subject) -> Iterator[tuple[Seen, tuple[int, ...], int, bool]]:
    """Layer and batch norms whose features are in another dimension: with shape, that dimension, and `plain`."""
    found = features(subject)
    for norm, node in subject.called():
        last = norm.info.kind is not None and norm.info.axis == "last"
        if not (norm.is_batch or (last and len(norm.info.shape) == 1)) or not node.inputs or node.inputs[0] < 0:
            continue
        shape, here = node.shapes[0], found[node.inputs[0]]
        if len(shape) > 2 and here.axis is not None and here.axis != (1 if norm.is_batch else len(shape) - 1):
            yield norm, shape, here.axis, here.plain
