"""What the tests of `insert` share."""

import torch
from torch import nn
from torch.nn import functional as F


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)


class Branching(nn.Module):
    """Cannot be traced: the way depends on the data. The last layer is made first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.body = nn.Linear(6, 8)
        self.more = nn.Linear(8, 8)

    def forward(self, x):
        x = F.relu(self.body(x))
        if x.sum() > -1:
            x = F.relu(self.more(x))
        return self.head(x)


def norms_of(model):
    return {name: type(module).__name__ for name, module in model.named_modules() if name.endswith("norm")}
