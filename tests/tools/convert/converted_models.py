"""What the tests of `convert` share."""

import torch
from torch import nn
from torch.nn import functional as F

from tools.subjects import randomised


class Net(nn.Module):
    """Two convolutions round one batch norm that is used twice, and a head."""

    def __init__(self, channels=8):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.alias = self.norm
        self.token = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.alias(self.second(x)))
        return self.head(self.token(x.mean((2, 3))))


def net():
    torch.manual_seed(0)
    return randomised(Net()).eval(), torch.randn(16, 3, 6, 6)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model, types, before):
    now = model.state_dict()
    return [type(m) for m in model.modules()] == types and all(torch.equal(now[key], before[key]) for key in before)
