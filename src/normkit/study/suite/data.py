"""The data of the built-in suite, from scikit-learn, scikit-image and Python; nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def digits(parts: tuple[int, int, int], noise: float, seed: int = 0) -> tuple[Pair, Pair, Pair]:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, made harder by noise, in three parts.

    Without the noise every method classifies nearly all digits and nothing can be compared. The noise is part of
    the data set: an image is the same each time it is used.

    Args:
        parts: numbers of images for training, validation and test.
        noise: standard deviation, as a fraction of the pixel range.
        seed: seed of the noise and of the split.

    >>> [len(labels) for _, labels in digits((600, 400, 797), 0.2)]
    [600, 400, 797]
    """
    pixels, labels = _digits()
    generator = torch.Generator().manual_seed(seed)
    inputs = pixels + noise * torch.randn(pixels.shape, generator=generator)
    order = torch.randperm(len(inputs), generator=generator)[: sum(parts)]
    train, validation, test = ((inputs[index], labels[index]) for index in order.split(parts))
    # In float64, because a float32 sum depends on the number of threads in its last digit.
    mean, std = train[0].double().mean().float(), train[0].double().std().float()
    return tuple(((x - mean) / std, y) for x, y in (train, validation, test))  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _digits() -> Pair:
    # Its file alone, because to import scikit-learn takes longer than to import torch.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    return torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.as_tensor(labels).long()


def rows(pair: Pair) -> Pair:
    """Images as sequences: each row is a time step."""
    images, labels = pair
    return images.squeeze(1), labels


def by_contrast(pair: Pair, classes: int, seed: int) -> Pair:
    """The same images with another label: the factor by which their contrast was changed.

    Args:
        pair: images and labels; the labels are replaced.
        classes: number of factors, half an octave apart.
        seed: seed of the choice.
    """
    images, _ = pair
    labels = torch.randint(classes, (len(images),), generator=torch.Generator().manual_seed(seed))
    factors = 2 ** (0.5 * (labels.float() - (classes - 1) / 2))
    return images * factors.view(-1, 1, 1, 1), labels


def patches(image: str, size: int, count: int, seed: int) -> Tensor:
    """Patches of a picture that has mean 0 and variance 1 as a whole: (count, 3, size, size).

    Args:
        image: "temple" or "flower", scikit-learn's two photographs; "brick" or "gravel", textures of scikit-image.
        size: length of a side, in pixels of the picture at a quarter of its resolution.
        count, seed: number of patches, and the seed of their positions.
    """
    picture = _picture(image)
    generator = torch.Generator().manual_seed(seed)
    _, height, width = picture.shape
    tops = torch.randint(height - size, (count,), generator=generator).tolist()
    lefts = torch.randint(width - size, (count,), generator=generator).tolist()
    return torch.stack([picture[:, t : t + size, s : s + size] for t, s in zip(tops, lefts, strict=True)])


@lru_cache(maxsize=4)
def _picture(name: str) -> Tensor:
    if name in ("temple", "flower"):
        from sklearn.datasets import load_sample_images

        pixels = load_sample_images().images[("temple", "flower").index(name)]
    else:
        import skimage.data

        pixels = getattr(skimage.data, name)()[..., None].repeat(3, -1)
    image = torch.as_tensor(pixels.copy(), dtype=torch.float32).permute(2, 0, 1)
    small = torch.nn.functional.avg_pool2d(image.unsqueeze(0), 4).squeeze(0)
    return (small - small.double().mean().float()) / small.double().std().float()


def text(length: int, seed: int) -> Tensor:
    """Characters of the Python standard library's own source as numbers below 96: printable ASCII, else 95.

    Args:
        length: length of one piece.
        seed: seed of the order of the pieces.
    """
    codes = _codes()
    pieces = codes[: len(codes) // length * length].view(-1, length)
    return pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))]


@lru_cache(maxsize=1)
def _codes() -> Tensor:
    import sysconfig
    from pathlib import Path

    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse", "ast", "copy", "csv", "dataclasses", "decimal", "difflib", "doctest", "enum", "fractions")
    found = [path.read_text(encoding="utf-8") for name in names if (path := folder / f"{name}.py").is_file()]
    return torch.tensor([ord(c) - 32 if 32 <= ord(c) < 127 else 95 for c in "".join(found)])


def chains(count: int, seed: int, *, symbols: int, classes: int, longest: int, share: float) -> Pair:
    """Sequences of symbols 1, 2, ... of several lengths, filled with 0, and the rule that each follows.

    By rule c the next symbol is the last one plus c + 1, from the end back to the first symbol. It is followed at a
    `share` of the steps; at the others the next symbol is drawn. So each symbol alone is equally frequent in all
    classes, and only pairs of neighbours tell them apart. Lengths are between a third of the longest and the longest.

    Args:
        count: number of sequences.
        seed: seed of the sequences.
        symbols: number of symbols.
        classes: number of rules, less than `symbols`.
        longest: length of the longest sequence.
        share: share of the steps at which the rule is followed.

    Returns:
        (count, longest) whole numbers, and (count,) classes.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    lengths = torch.randint(longest // 3, longest + 1, (count, 1), generator=generator)
    steps = [torch.randint(symbols, (count,), generator=generator)]
    for _ in range(longest - 1):
        drawn = torch.randint(symbols, (count,), generator=generator)
        follows = torch.rand(count, generator=generator) < share
        steps.append(torch.where(follows, (steps[-1] + labels + 1) % symbols, drawn))
    return (torch.stack(steps, 1) + 1) * (torch.arange(longest) < lengths), labels
