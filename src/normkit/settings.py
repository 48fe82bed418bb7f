"""The environment variables of normkit. No other module reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One environment variable.

    Attributes:
        name: the name of the variable.
        values: the values that it can have.
        default: the behaviour if it is not set.
        meaning: what it does.
        read: when it is read.
    """

    name: str
    values: str
    default: str
    meaning: str
    read: str

    @property
    def value(self) -> str:
        """Its present value; empty if it is not set."""
        return os.environ.get(self.name, "")

    @property
    def is_on(self) -> bool:
        """Whether it is 1."""
        return self.value == "1"

    @property
    def turned_off(self) -> str:
        """The reason to report if it is 0, else an empty string.

        >>> NATIVE.turned_off or NATIVE.default
        'in use'
        """
        return f"turned off by {self.name}=0" if self.value == "0" else ""


NATIVE = Setting("NORMKIT_NATIVE", "`0`", "in use", "`0` turns off the C++ kernels.", "once, at the first call")
FASTPATH = Setting(
    "NORMKIT_FASTPATH",
    "`0`",
    "in use",
    "`0` turns off the C++ fast path for eager calls. If set during an installation from source, it is not built.",
    "at import, and by `setup.py`",
)
ISA = Setting(
    "NORMKIT_ISA",
    "`baseline`, `avx2`, `avx512`, `avx512_bf16`",
    "the best of the processor",
    "The instruction set of the C++ kernels; it can be a lesser one than the best of the processor.",
    "once, at the first call, by the C++ kernels",
)
TRITON = Setting("NORMKIT_TRITON", "`0`", "in use", "`0` turns off the GPU kernels.", "once, at the first call")
AUTOTUNE = Setting(
    "NORMKIT_AUTOTUNE",
    "`1`",
    "off",
    "`1` measures several schedules of a GPU kernel for each new shape, and keeps the fastest.",
    "at each new shape",
)
CACHE = Setting(
    "NORMKIT_CACHE",
    "a folder",
    "`~/.cache/normkit`",
    "The folder for the fast paths that `python -m normkit.build` builds, and the schedules that `NORMKIT_AUTOTUNE=1` "
    "chooses.",
    "at import, and at each new shape",
)
STORE = Setting(
    "NORMKIT_STORE",
    "the URL of a database",
    "a file in `--out`",
    "The database of finished runs, for `normkit compare` without `--store`.",
    "by each `normkit compare`",
)

SETTINGS = (NATIVE, FASTPATH, ISA, TRITON, AUTOTUNE, CACHE, STORE)


CHINESE: Mapping[str, str] = {
    "Variable": "变量",
    "Values": "取值",
    "Default": "默认",
    "Meaning": "含义",
    "Read": "何时读取",
    "in use": "启用",
    "off": "关闭",
    "the best of the processor": "处理器支持的最高一级",
    "a folder": "文件夹",
    "the URL of a database": "数据库的 URL",
    "a file in `--out`": "`--out` 中的文件",
    "once, at the first call": "一次，首次调用时",
    "at import, and by `setup.py`": "导入时，以及由 `setup.py` 读取",
    "once, at the first call, by the C++ kernels": "一次，首次调用时，由 C++ 内核读取",
    "at each new shape": "每次遇到新的形状时",
    "at import, and at each new shape": "导入时，以及每次遇到新的形状时",
    "by each `normkit compare`": "每次执行 `normkit compare` 时",
    NATIVE.meaning: "`0` 关闭 C++ 内核。",
    FASTPATH.meaning: "`0` 关闭 eager 调用的 C++ 快速路径。从源码安装时若已设置，则不编译快速路径。",
    ISA.meaning: "C++ 内核使用的指令集；可以低于处理器支持的最高一级。",
    TRITON.meaning: "`0` 关闭 GPU 内核。",
    AUTOTUNE.meaning: "`1` 对每种新的形状测量 GPU 内核的几种调度，并保留最快的一种。",
    CACHE.meaning: "存放 `python -m normkit.build` 编译的快速路径，以及 `NORMKIT_AUTOTUNE=1` 所选调度的文件夹。",
    STORE.meaning: "未给出 `--store` 时，`normkit compare` 用来保存已完成运行的数据库。",
}
"""The words of the page in Chinese."""


def markdown(lang: str = "en") -> str:
    """All settings as a page: `docs/en/engine/settings.md`, or with ``"zh"`` the one in `docs/zh`."""
    rows: list[tuple[str, ...]] = [("Variable", "Values", "Default", "Meaning", "Read"), ("---",) * 5]
    rows += [(f"`{each.name}`", each.values, each.default, each.meaning, each.read) for each in SETTINGS]
    if lang == "zh":
        rows = [tuple(map(_chinese, row)) for row in rows]
        head = (
            "# 环境变量\n\nnormkit 读取的环境变量，均可不设。"
            "`normkit.show_backends()` 显示正在使用哪些内核，以及原因。\n\n"
        )
    else:
        head = (
            "# Settings\n\nEnvironment variables that normkit reads. Each is optional. "
            "`normkit.show_backends()` shows which kernels are in use, and why.\n\n"
        )
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _chinese(cell: str) -> str:
    """A cell in Chinese; code stays as it is.

    >>> _chinese("off"), _chinese("`baseline`, `avx2`")
    ('关闭', '`baseline`、`avx2`')
    """
    return CHINESE[cell] if re.sub("`[^`]*`|---|, ", "", cell) else cell.replace(", ", "、")
