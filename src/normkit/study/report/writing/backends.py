"""The lines of `show_backends` in Chinese; a reason that is not known here stays in English."""

from __future__ import annotations

import re

_DEVICES = {"cpu": "CPU", "gpu": "GPU", "other": "其他设备"}
_NAMES = {
    "C++ kernels": "C++ 内核",
    "fast path": "快速路径",
    "plain torch": "原生 torch",
    "Triton kernels": "Triton 内核",
}
_REASONS = (
    (r"(\S+) kernels from (\S+)", r"\1 内核，来自 \2"),
    (r"built for torch (.+)", r"针对 torch \1 编译"),
    (r"the reference, if there are no kernels", "参考实现，没有内核时使用"),
    (r"torch sees no GPU that Triton compiles for", "torch 没有检测到 Triton 支持的 GPU"),
    (r"there are no C\+\+ kernels for it to call", "没有可供调用的 C++ 内核"),
    (r"there are no Triton kernels for it to launch", "没有可供启动的 Triton 内核"),
    (r"there are no kernels for it", "没有相应的内核"),
    (r"launches through (.+)", r"通过 \1 启动"),
)
_LINE = re.compile(r"(\w+)\s+(.+?)\s{2,}(in use|not in use)\s{2,}(.*)")


def kernels(text: str, lang: str) -> str:
    """The table of the backends in one language.

    >>> kernels("cpu   plain torch     not in use  the reference, if there are no kernels", "zh")
    'CPU：原生 torch，未使用（参考实现，没有内核时使用）'
    """
    return text if lang == "en" else "\n".join(map(_line, text.splitlines()))


def _line(line: str) -> str:
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return line
    device, name, state, reason = found.groups()
    for pattern, words in _REASONS:
        if match := re.fullmatch(pattern, reason):
            reason = match.expand(words)
            break
    used = "使用中" if state == "in use" else "未使用"
    return f"{_DEVICES.get(device, device)}：{_NAMES.get(name, name)}，{used}（{reason}）"
