"""Converted models with their own activation checkpointing switched on: gradients as without it, from the first call.

The first call of a shape takes another way than those after it, so the forward of a checkpoint and its recomputation
differ where the shape is new. Batches have sizes that no other test of these models has.
"""

import copy
import warnings

import pytest
import torch

import normkit
import zoo
from tools.subjects import IN_FLOAT32, Run, model_of

QUICK = ("mobilenetv3_small_050", "vit_tiny_patch16_224", "gpt2")
MORE = (
    "resnet10t",
    "resnet18",
    "efficientnet_b0",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "poolformer_s12",
    "densenet121",
    "regnetx_002",
    "mixer_s32_224",
    "levit_128s",
    "edgenext_xx_small",
    "xception41",
    "resnetv2_50",
    *(name for name in (*zoo.TEXT, *zoo.SOUND) if name not in ("gpt2", "albert")),  # albert cannot do it
)


def checkpointed(model, reentrant):
    """Switch on what the library has."""
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames it
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    return model


def same_gradients(name, sizes=(3, 5), reentrant=False):
    model, x = model_of(name)
    plain = normkit.convert(model)[0]
    saving = checkpointed(copy.deepcopy(plain), reentrant)
    norms = [module for module in saving.modules() if type(module).__module__.startswith("normkit.")]
    calls = []
    for norm in norms:
        norm.register_forward_hook(lambda *_: calls.append(1))
    for size in sizes:  # the second when the way of the first is known
        calls.clear()
        batch = x[:1].expand(size, *x.shape[1:]) if not x.is_floating_point() else torch.randn(size, *x.shape[1:])
        found = Run.of(saving, batch, training=True, dtype=torch.float32)
        assert len(calls) > len(norms), "nothing was computed twice"
        # The same arithmetic, but gradients of a weight that several calls share are summed in another order: roundings
        # of 1e-7, of values that cancel by a digit or two. Wrongly paired tensors are off by 0.1 and more.
        once = Run.of(plain, batch, training=True, dtype=torch.float32)
        assert found.gradient_error(once) <= 1e-5
    # As in test_convert: rounding of float64, or of float32 inside, enlarged by the model.
    errors = Run.of(saving, batch, training=True, dtype=torch.float64).errors(
        Run.of(model, batch, training=True, dtype=torch.float64)
    )
    assert max(errors.values()) <= (2e-6 if name in IN_FLOAT32 else 1e-10), max(errors, key=errors.get)


@pytest.mark.parametrize("name", QUICK)
def test_gradients_with_checkpointing_are_those_without(name):
    same_gradients(name)


def test_gradients_with_reentrant_checkpointing_are_those_without():
    same_gradients("gpt2", (6, 7), reentrant=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_gradients_of_more_models_with_checkpointing(name):
    same_gradients(name)
    if name in zoo.TEXT:
        same_gradients(name, (6, 7), reentrant=True)
