"""Pages of the public names, which Sphinx fills from signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import normkit
from builder.words import Text, say
from normkit import functional, layers, parametrize

_WITH = {
    "audit": "normkit.tools.audit",
    "compare": "normkit.study.comparison:Comparison",
    "convert": "normkit.tools.convert",
    "fold": "normkit.tools.fold",
    "fold_for_training": "normkit.tools.fold_training",
    "freeze": "normkit.tools.freeze",
    "init_weight_norm": "normkit.parametrize.weight_init",
    "insert": "normkit.tools.insert",
    "recalibrate": "normkit.tools.recalibrate",
    "replace_placement": "normkit.tools.replace_placement",
    "show_backends": "normkit.backends",
    "Task": "normkit.study.task",
    "to_rms_norm": "normkit.tools.to_rms_norm",
    "watch": "normkit.tools.watch",
}
"""For a public name, the module whose other public names its page describes, such as a report; or some of them."""
_MODULES = {
    "normkit.functional.extras": "",
    "normkit.errors": "NormkitError PatternError ShapeError ArgumentError DtypeError StateError",
    "normkit.pattern": "parse Region Axis Level",
    "normkit.plan": "plan Plan",
    "normkit.draw": "svg row",
    "normkit.catalog": "find METHODS CLAIMS EVIDENCE Method Statement Claim Paper Mark Text",
}
"""Modules that docstrings and guides refer to, each on one page, and which of their names; "" for all."""


@dataclass(frozen=True)
class Group:
    """A heading of the index, and the dotted names below it."""

    title: Text
    names: Sequence[str]


def groups() -> list[Group]:
    """All public names, each in one group."""
    homes = {name: importlib.import_module(module) for name, module in normkit._HOME.items()}
    of_layers = [name for name, home in homes.items() if home is layers]
    of_weights = [name for name, home in homes.items() if home is parametrize]
    study = ["compare", "Task"]
    rest = [name for name in homes if name not in {*of_layers, *of_weights, *study}]
    return [
        Group(Text("Layers", "层"), _dotted("normkit", sorted(of_layers, key=str.casefold))),
        Group(Text("Functions", "函数"), _dotted("normkit.functional", functional.__all__)),
        Group(Text("Norms of weights", "权重的归一化"), _dotted("normkit", of_weights)),
        Group(Text("Comparison", "比较"), _dotted("normkit", study)),
        Group(Text("Tools", "工具"), _dotted("normkit", rest)),
        Group(Text("Modules", "模块"), tuple(_MODULES)),
    ]


def pages(lang: str) -> dict[str, str]:
    """The pages as reStructuredText, by the name of their files without a suffix."""
    made = {"index": _index(lang)}
    for group in groups():
        for name in group.names:
            made[name] = _module(name, lang) if name in _MODULES else _page(name, lang)
    return made


def _dotted(module: str, names: Sequence[str]) -> list[str]:
    return [f"{module}.{name}" for name in names]


def _index(lang: str) -> str:
    parts = [_heading(say("api", lang), "="), say("api lead", lang)]
    for group in groups():
        parts += [_heading(group.title.to(lang), "-"), ".. list-table::\n   :widths: 2 5\n   :class: nk-names\n"]
        rows = [f"   * - :doc:`{_short(name)} <{name}>`\n     - {_first_sentence(name)}" for name in group.names]
        parts[-1] += "\n" + "\n".join(rows)
    names = [name for group in groups() for name in group.names]
    parts.append(".. toctree::\n   :hidden:\n\n" + "\n".join(f"   {_short(name)} <{name}>" for name in names))
    return "\n\n".join(parts) + "\n"


def _page(dotted: str, lang: str) -> str:
    module, _, name = dotted.rpartition(".")
    parts = [_heading(name, "="), *_note(lang), f".. currentmodule:: {module}", _directive(module, name)]
    others = _others(name) if module == "normkit" else []
    if others:
        parts.append(_heading(say("reports", lang), "-"))
        for home, other in others:
            parts += [f".. currentmodule:: {home}", _directive(home, other)]
    return "\n\n".join(parts) + "\n"


def _module(name: str, lang: str) -> str:
    """A module with all that it defines for users."""
    module = importlib.import_module(name)
    parts = [_heading(name, "="), *_note(lang), f".. automodule:: {name}", f".. currentmodule:: {name}"]
    parts += [_directive(name, each) for each in _MODULES[name].split() or _public(module)]
    return "\n\n".join(parts) + "\n"


def _others(name: str) -> list[tuple[str, str]]:
    """The public names that share the page of a function: module and name of each."""
    home, _, names = _WITH.get(name, "").partition(":")
    if not home:
        return []
    others = names.split() or _public(importlib.import_module(home))
    return [(home, other) for other in others if other not in normkit.__all__]


def _public(module: ModuleType) -> list[str]:
    """What a module exports, or without `__all__` the classes and functions that it defines."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]
    return list(getattr(module, "__all__", own))


def _directive(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:"
    if callable(value):
        return f".. autofunction:: {name}"
    return f".. autodata:: {name}\n   :no-value:"


def _note(lang: str) -> list[str]:
    text = say("english", lang)
    return [f"*{text}*"] if text else []


def _heading(title: str, line: str) -> str:
    return f"{title}\n{line * max(3, 2 * len(title))}"


def _short(dotted: str) -> str:
    """The name without its package, for the index and the sidebar."""
    return dotted.removeprefix("normkit.").removeprefix("functional.") if dotted not in _MODULES else dotted


def _first_sentence(dotted: str) -> str:
    module, _, name = dotted.rpartition(".")
    value = importlib.import_module(dotted) if dotted in _MODULES else getattr(importlib.import_module(module), name)
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
