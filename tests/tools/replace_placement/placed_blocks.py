"""Small residual models, and every placement written by hand from its formula."""

import torch
from torch import nn

WIDTH = 8


class Branch(nn.Module):
    """A perceptron, the f of a block."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x):
        return self.narrow(torch.tanh(self.wide(x)))


class Mixer(nn.Module):
    """Attention over the tokens, written out."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        weight = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)
        return self.out(weight @ self.v(x))


class Block(nn.Module):
    """Abstract: two branches and their norms."""

    def __init__(self, norm=nn.LayerNorm, mixer=Mixer):
        super().__init__()
        self.norm1, self.mixer, self.norm2, self.mlp = norm(WIDTH), mixer(), norm(WIDTH), Branch()
        self.drop = nn.Dropout(0.1)


class Pre(Block):
    def forward(self, x):
        h = self.norm1(x)
        x = x + self.drop(self.mixer(h))
        y = self.mlp(self.norm2(x))
        y += x
        return y


class Post(Block):
    def forward(self, x):
        x = self.norm1(x + self.drop(self.mixer(x)))
        return self.norm2(torch.add(self.drop(self.mlp(x)), x))


class Output(Block):
    def forward(self, x):
        x = x + self.norm1(self.drop(self.mixer(x)))
        return x.add(self.norm2(self.mlp(x)))


class Sandwich(Block):
    def __init__(self, **options):
        super().__init__(**options)
        self.norm1_output, self.norm2_output = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        x = self.norm1_output(self.mixer(self.norm1(x))) + x
        return self.norm2_output(self.mlp(self.norm2(x))) + x


class Net(nn.Module):
    """An embedding, blocks, perhaps a norm, and a head."""

    def __init__(self, block=Pre, depth=2, final=True, **options):
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList([block(**options) for _ in range(depth)])
        self.norm = options.get("norm", nn.LayerNorm)(WIDTH) if final else nn.Identity()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


KINDS = {"pre": (Pre, True), "post": (Post, False), "output": (Output, True), "sandwich": (Sandwich, True)}


def made(kind, seed=0, **options):
    """A model of a kind with initial norms, in float64."""
    torch.manual_seed(seed)
    block, final = KINDS[kind]
    return Net(block, final=final, **options).double()


@torch.no_grad()
def randomised(model, seed=1):
    """Random values for every parameter of a model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2 + 0.3)
    return model


def layer_norm(norm, x):
    """From the formula."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def by_hand(model, x, to, rows):
    """The output of a `Net` under a placement, from its branches and the norms that the report names."""
    modules = dict(model.named_modules())
    names = iter(rows.blocks)
    ends = {row.place: modules[row.name] for row in rows.stacks if row.change != "removed"}
    x = model.embed(x)
    if to == "peri":
        x = layer_norm(ends["stem"], x)
    for block in model.blocks:
        for branch in (block.mixer, block.mlp):
            row = next(names)
            norm = modules[row.name]
            if to == "pre":
                x = x + branch(layer_norm(norm, x))
            elif to == "post":
                x = layer_norm(norm, x + branch(x))
            else:
                first, second = input_and_output(modules, block, branch, row)
                x = x + layer_norm(second, branch(layer_norm(first, x)))
    return model.head(x if to == "post" else layer_norm(ends["final"], x))


def input_and_output(modules, block, branch, row):
    """The two norms of a branch, by the names of new ones."""
    if row.added:
        new = modules[row.added[0]]
        return (new, modules[row.name]) if row.added[0].endswith("_input") else (modules[row.name], new)
    number = 1 if branch is block.mixer else 2
    return getattr(block, f"norm{number}"), getattr(block, f"norm{number}_output")
