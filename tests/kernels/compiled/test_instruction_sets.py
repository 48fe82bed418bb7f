"""What is chosen once in a process: the instruction set of the kernels, and plain torch in place of them."""

import json
import os
import subprocess
import sys

import pytest

BARE = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)}
"""The environment of a process that tests one variable."""

ISAS = ["baseline", "avx2", "avx512", "avx512_bf16"]
NUMBERS = """
import torch
from normkit.functional import normalize
from normkit.kernels import formula
torch.manual_seed(0)
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for pattern in ("[b] c [...]", "b [c] ...", "... [c]", "b (g=2 [c]) [...]"):
        for fmt in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(3, 6, 19, 6).to(dtype).contiguous(memory_format=fmt)
            w = torch.randn(6).to(dtype)
            leaves = [x.clone(memory_format=fmt).requires_grad_(), w.clone().requires_grad_()]
            y = normalize(leaves[0], pattern, leaves[1])
            exact = [t.double().requires_grad_() for t in (x, w)]
            y64, _, mean, std = formula.norm(formula.Arguments(*exact, None, pattern, 1e-5, True))
            bound = 4 * torch.finfo(dtype).eps * (1 + (mean.abs() / std).max().item())
            assert (y.double() - y64).abs().max() <= bound * max(1, y64.abs().max().item()), (dtype, pattern)
            dy = torch.randn(x.shape).to(dtype)
            for g, h in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(y64, exact, dy.double())):
                assert (g.double() - h).abs().max() <= 4 * bound * max(1, h.abs().max().item()), (dtype, pattern)
"""
# Standardizing with mean 0 and std 1 and no eps is the identity: what went in must come out, bit for bit.
CONVERSION = """
import torch
import normkit.kernels.operator
from normkit.kernels.native import native
bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
for dtype in (torch.float16, torch.bfloat16):
    x = bits.view(dtype)
    x = x[x.isfinite()].view(1, 1, -1)
    y = torch.ops.normkit.norm.default(x, None, None, "[b] c [...]", 0.0, True, torch.zeros(1), torch.ones(1))[0]
    # The instruction takes subnormals for zero.
    if dtype is torch.bfloat16 and native().reason.startswith("avx512_bf16"):
        x = torch.where(x.abs() < torch.finfo(dtype).smallest_normal, 0, x)
    assert torch.equal(y, x)
    # rounding on the way out, against torch's own
    f = torch.randn(1, 1, 100_000).mul(torch.logspace(-9, 5, 100_000))
    w = f.view(-1)
    one = torch.ones(1, 100_000, dtype=dtype)
    got = torch.ops.normkit.norm.default(one, w, None, "[b] [c]", 0.0, True, torch.zeros(1), torch.ones(1))[0]
    assert torch.equal(got.view(-1), w.to(dtype))
"""
# Every width up to a few vectors of any instruction set, with padding, a residual and each activation in turn.
WIDTHS = """
import torch
from normkit.functional import normalize
from normkit.kernels import formula
torch.manual_seed(0)
activations = ("none", "relu", "silu", "gelu", "tanh")
for dtype in (torch.bfloat16, torch.float16):
    for width in (*range(2, 36), 70):
        for i, pattern in enumerate(("[b] c [...]", "b [c] ...", "b c [...]", "b [c] [...]")):
            activation = activations[(width + i) % 5]
            x, residual, dy = (torch.randn(4, 6, width).to(dtype) for _ in range(3))
            mask = torch.rand(4, width) > 0.2
            mask[:, :2] = True
            leaves = [t.clone().requires_grad_() for t in (x, torch.randn(6).to(dtype), residual)]
            y = normalize(leaves[0], pattern, leaves[1], mask=mask, residual=leaves[2],
                          activation=None if activation == "none" else activation)
            exact = [t.detach().double().requires_grad_() for t in leaves]
            # The sum is stored in half precision before it is normalized.
            total = exact[0] + exact[2] + ((x + residual).double() - x.double() - residual.double())
            a = formula.Arguments(total, exact[1], None, pattern, 1e-5, True, mask=mask[:, None], activation=activation)
            y64, _, mean, std = formula.norm(a)
            bound = 4 * torch.finfo(dtype).eps * (1 + (mean.abs() / std).max().item())
            assert (y.double() - y64).abs().max() <= bound * max(1, y64.abs().max().item()), (dtype, width, pattern)
            for g, h in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(y64, exact, dy.double())):
                assert (g.double() - h).abs().max() <= 4 * bound * max(1, h.abs().max().item()), (dtype, width, pattern)
"""
WITHOUT_KERNELS = """
import warnings
import torch
from normkit.kernels import native as module
module._FOLDER = module._FOLDER / "nowhere"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from normkit.functional import layer_norm
    import normkit
    x = torch.randn(4, 8, requires_grad=True)
    layer_norm(x, (8,)).sum().backward()
    layer_norm(x, (8,))
assert x.grad is not None
assert len(caught) == 1, caught
print(caught[0].message)
print(normkit.show_backends())
"""
TURNED_OFF = """
import os, warnings
os.environ["NORMKIT_NATIVE"] = "0"
warnings.simplefilter("error")
import normkit
print(normkit.show_backends())
"""
# One process for each, because the choice is made once. They fork from one that has loaded torch, and not normkit. What
# an instruction set computes is looked at once, if several are asked for in vain.
FORKS = """
import contextlib, io, json, os, sys, traceback
import torch
codes, others = json.loads(sys.stdin.read())

def carried_out(code):
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            exec(code, {})
        return text.getvalue(), ""
    except BaseException:
        return text.getvalue(), traceback.format_exc()

def forked(name, work):
    reader, writer = os.pipe()
    if not os.fork():
        os.write(writer, json.dumps([name, *work()]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        found = file.read()
    os.wait()
    print(found, flush=True)
    return json.loads(found)

def of_isa(isa, known):
    os.environ["NORMKIT_ISA"] = isa
    from normkit.kernels.native import native
    used = native().reason.split()[0]
    return used, None if used in known else {name: carried_out(code)[1] for name, code in codes.items()}

known = set()
for isa in sys.argv[1:]:
    known.add(forked(isa, lambda: of_isa(isa, known))[1])
for name, code in others.items():
    forked(name, lambda: carried_out(code))
"""


@pytest.fixture(scope="module")
def forks():
    """By name: for an instruction set that is asked for, the one that is used, and what went wrong in each of the
    codes; for other code, what it printed, and what went wrong."""
    codes = {"numbers": NUMBERS, "conversion": CONVERSION, "widths": WIDTHS}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, "", *ISAS],
        input=json.dumps([codes, {"without kernels": WITHOUT_KERNELS, "turned off": TURNED_OFF}]),
        capture_output=True,
        text=True,
        env=BARE,
    )
    found = {name: results for name, *results in map(json.loads, done.stdout.splitlines())}
    assert list(found) == ["", *ISAS, "without kernels", "turned off"], done.stderr
    return found


@pytest.fixture(scope="module")
def by_isa(forks):
    asked = {isa: forks[isa] for isa in ("", *ISAS)}
    of_used = {used: wrong for used, wrong in asked.values() if wrong is not None}
    assert all(set(wrong) == {"numbers", "conversion", "widths"} for wrong in of_used.values())
    return {isa: (used, of_used[used]) for isa, (used, _) in asked.items()}


@pytest.mark.parametrize("isa", ["", *ISAS])
def test_every_instruction_set_gives_right_numbers(isa, by_isa):
    used, wrong = by_isa[isa]
    assert not wrong["numbers"], wrong["numbers"]
    # Of the machine, and not of this process, which may have been asked for less.
    best = by_isa[""][0]
    assert used == (ISAS[min(ISAS.index(isa), ISAS.index(best))] if isa else best)


@pytest.mark.parametrize("isa", ["", *ISAS])
def test_half_precision_conversion_is_exact_for_every_number(isa, by_isa):
    _, wrong = by_isa[isa]
    assert not wrong["conversion"], wrong["conversion"]


@pytest.mark.parametrize("isa", ["", *ISAS])
def test_half_precision_of_every_width_with_padding_and_activations(isa, by_isa):
    _, wrong = by_isa[isa]
    assert not wrong["widths"], wrong["widths"]


def test_without_kernels_everything_runs_on_the_reference_and_one_warning_is_given(forks):
    text, wrong = forks["without kernels"]
    assert not wrong, wrong
    assert "normkit runs on plain torch, which is right but slower (no compiled kernels in" in text
    assert "Remedy: install g++ and reinstall normkit" in text
    assert "C++ kernels     not in use" in text


def test_kernels_can_be_turned_off(forks):
    text, wrong = forks["turned off"]
    assert not wrong, wrong
    assert "turned off by NORMKIT_NATIVE=0" in text
