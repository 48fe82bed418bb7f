"""Brings models of other libraries to life for a comparison: no initial values, no chance, and an error measured."""

import copy
import dataclasses

import torch
from torch import Tensor, nn

import zoo
from normkit.tools.model.tree import norms

IN_FLOAT32 = ("llama", "t5", "mamba", "qwen2", "gemma", "mistral")
"""Their norms compute in float32 whatever they are given."""


def model_of(name):
    """A model of the zoo with random norms and without dropout, and a batch."""
    torch.manual_seed(0)
    model, x = zoo.language_model(name) if name in zoo.TEXT + zoo.SOUND else zoo.image_model(name)
    if name in zoo.IMAGES:
        # Batch norm of two samples on one position only tells which one is larger: any rounding decides.
        x = torch.randn(4, *x.shape[1:])
    return still(randomised(model)), x


@torch.no_grad()
def randomised(model):
    """Norms with values of their own: initial ones hide what is forgotten."""
    for place, _ in norms(model):
        for key, value in [*place.module._parameters.items(), *place.module._buffers.items()]:
            if value is None or not value.is_floating_point():
                continue
            positive = key in ("weight", "running_var")
            value.copy_(torch.rand_like(value) + 0.5 if positive else torch.randn_like(value) / 5)
    for parameter in model.parameters():
        if not parameter.any():  # a head of zeros lets nothing through
            parameter.normal_(std=0.1)
    return model


def still(model):
    """Without dropout, layer drop and masking."""
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, float) and ("drop" in key or (isinstance(module, nn.Dropout) and key == "p")):
                setattr(module, key, 0.0)
        if hasattr(getattr(module, "config", None), "apply_spec_augment"):
            module.config.apply_spec_augment = False
    return model


@dataclasses.dataclass
class Run:
    """Outputs, gradients of parameters, and buffers after one pass, all in float64."""

    y: Tensor
    gradients: dict
    buffers: dict

    @classmethod
    def of(cls, model, x, *, training, dtype):
        model = copy.deepcopy(model).to(dtype).train(training)
        x = x.to(dtype) if x.is_floating_point() else x
        torch.manual_seed(2)
        y = model(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).sin().view_as(y)).sum().backward()
        gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
        return cls(y.detach().double(), gradients, {name: b.double() for name, b in model.named_buffers()})

    def errors(self, truth):
        """The error of each tensor over its size; a gradient that is zero but for rounding is measured by all."""
        assert self.gradients.keys() == truth.gradients.keys()
        assert self.buffers.keys() == truth.buffers.keys()
        whole = torch.stack([g.norm() for g in truth.gradients.values()]).norm()
        found = {"output": (self.y - truth.y).norm() / truth.y.norm()}
        for name, g in truth.gradients.items():
            found[f"gradient {name}"] = (self.gradients[name] - g).norm() / (g.norm() + 1e-5 * whole)
        for name, b in truth.buffers.items():
            found[f"buffer {name}"] = (self.buffers[name] - b).norm() / b.norm().clamp_min(1e-30)
        return {name: value.item() for name, value in found.items()}

    def gradient_error(self, truth):
        """The error of all gradients together over their size."""
        wrong = torch.stack([(self.gradients[name] - g).norm() for name, g in truth.gradients.items()]).norm()
        return (wrong / torch.stack([g.norm() for g in truth.gradients.values()]).norm()).item()
