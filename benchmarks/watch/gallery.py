"""Writes the audit and the picture that the gallery shows: ``python -m benchmarks.watch.gallery``, a minute.

The model is timm's resnet18 with random weights, made for images of 32 x 32 pixels, trained on scikit-learn's digits.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

import normkit
import zoo
from normkit.tools.audit import Report
from normkit.tools.watch import Watch

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = DOCS / "figures" / "watch-resnet18.svg"
STEPS, BATCH = 100, 16


def model() -> nn.Module:
    """The network of timm; its last blocks see one position of an image of 32 x 32 pixels."""
    torch.manual_seed(0)
    made, _ = zoo.image_model("resnet18")
    return made.train()


def data() -> tuple[Tensor, Tensor]:
    """The digits with three equal channels, enlarged to 32 x 32 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return interpolate(images.expand(-1, 3, -1, -1), size=32), torch.tensor(digits.target)


def watched() -> tuple[nn.Module, Watch]:
    """The model after some steps of SGD, and what was recorded."""
    net, (images, labels) = model(), data()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    with normkit.watch(net, every=2) as records:
        for _ in range(STEPS):
            chosen = torch.randint(len(images), (BATCH,))
            loss = cross_entropy(net(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net, records


def audited(net: nn.Module) -> Report:
    """What the audit finds before the model is trained on with AdamW, which decays all, two images at a time."""
    images, _ = data()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    return normkit.audit(net, images[:2], optimizer=optimizer, batch_size=2)


def main() -> None:
    """Write both into the pages of both languages."""
    net, records = watched()
    records.heat_map(PICTURE, value="grad_output")
    text = str(audited(net))
    for lang in ("en", "zh"):
        page = DOCS / lang / "gallery" / "index.md"
        old = page.read_text(encoding="utf-8")
        new, count = re.subn(
            r"(<!-- audit -->\n\n```text\n).*?(```)",
            lambda match: match[1] + text + "\n" + match[2],
            old,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{page} must have one block of text after <!-- audit -->")
        page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
