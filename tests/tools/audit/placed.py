"""Models whose forward is a function of their layers, for the tests of `audit`."""

from torch import nn

import normkit


class Does(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._does = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self._does(self, x)


def conv(*sizes, **options):
    """A convolution that keeps height and width."""
    return nn.Conv2d(*sizes, 3, padding=1, **options)


def found(model, x, *codes, **given):
    """The findings of these rules: code and place."""
    return [(f.code, f.module) for f in normkit.audit(model, x, **given).findings if f.code in codes]
