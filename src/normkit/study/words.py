"""How numbers and names are written, in the terminal and on the page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from normkit import catalog
from normkit.study.evidence import Evidence
from normkit.study.stats import Interval

MISSING = "–"


_OTHERS = {"none": catalog.Text("No norm", "不归一化"), "unchanged": catalog.Text("As it is", "原样")}


def title(method: str, lang: str = "en") -> str:
    """A method's name as it stands in a table.

    >>> title("none"), title("none", "zh")
    ('No norm', '不归一化')
    """
    return (_OTHERS[method] if method in _OTHERS else catalog.find(method).title).to(lang)


def inline(method: str) -> str:
    """A method's name inside a sentence.

    >>> inline("batch_norm")
    'batch norm'
    """
    return title(method).lower()


def listing(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal; the space does not break.

    >>> percent(0.0618)
    '6.2\xa0%'
    """
    return f"{100 * value:.1f}\xa0%"


def error(interval: Interval | None) -> tuple[str, str]:
    """An error and its interval; an interval that leaves the possible range is cut there.

    >>> error(Interval(0.062, 0.051, 0.073, 8))
    ('6.2\\xa0%', '5.1 to 7.3')
    """
    if interval is None:
        return MISSING, ""
    low, high = max(0.0, interval.low), min(1.0, interval.high)
    return percent(interval.value), f"{100 * low:.1f} to {100 * high:.1f}"


def steps(median: tuple[float, bool] | None) -> str:
    """Steps to the target; a bound is written as one.

    >>> steps((74.0, False)), steps((400.0, True))
    ('74', '≥ 400')
    """
    if median is None:
        return MISSING
    value, bound = median
    return f"{'≥ ' if bound else ''}{value:.0f}"


def times(interval: Interval | None) -> tuple[str, str]:
    """A ratio and its interval.

    >>> times(Interval(1.2345, 1.19, 1.3, 60))
    ('1.23×', '1.19 to 1.30')
    """
    if interval is None:
        return MISSING, ""
    return f"{interval.value:.2f}×", f"{interval.low:.2f} to {interval.high:.2f}"


def signed(interval: Interval | None, digits: int = 2) -> tuple[str, str]:
    """A difference with its sign.

    >>> signed(Interval(-0.041, -0.1, 0.02, 8))
    ('−0.04', '−0.10 to +0.02')
    """
    if interval is None:
        return MISSING, ""
    return plus(interval.value, digits), f"{plus(interval.low, digits)} to {plus(interval.high, digits)}"


def points(interval: Interval) -> tuple[str, str]:
    """A difference of errors in percentage points.

    >>> points(Interval(0.031, 0.012, 0.05, 8))
    ('+3.1', '+1.2 to +5.0')
    """
    scaled = Interval(100 * interval.value, 100 * interval.low, 100 * interval.high, interval.n)
    return signed(scaled, 1)


def plus(value: float, digits: int = 2) -> str:
    """A number with a sign, a true minus; what rounds to 0 has none.

    >>> plus(0.001), plus(-0.5, 1)
    ('0.00', '−0.5')
    """
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def rate(value: float | None) -> str:
    """A learning rate with at most two digits that count.

    >>> rate(0.03162)
    '0.032'
    """
    return MISSING if value is None else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time in minutes and seconds.

    >>> duration(131.4), duration(7.2)
    ('2 min 11 s', '7 s')
    """
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def effect(evidence: Evidence) -> tuple[str, str]:
    """An effect and its interval in the unit of the experiment; a bound is written as one."""
    mark = {"exact": "", "at least": "≥ ", "at most": "≤ ", "unknown": "≈ "}[evidence.bound]
    interval = evidence.effect
    match evidence.unit:
        case "points":
            value, spread = points(interval)
        case "log2 ratio" | "log10 ratio":
            base = 2 if evidence.unit == "log2 ratio" else 10
            value, low, high = (f"{base**x:.2f}" for x in (interval.value, interval.low, interval.high))
            value, spread = f"{value}×", f"{low} to {high}"
        case _:
            value, spread = signed(interval, 2 if abs(interval.value) > 0.01 else 4)
    return mark + value, "" if mark else spread
