"""Numbers and names as text, for the terminal and the page, in both languages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from normkit import catalog
from normkit.study.analysis.evidence import Evidence, Form
from normkit.study.analysis.stats import Interval
from normkit.study.task.metric import ERROR, MISSING, Metric, number, span
from normkit.study.training.trial import Options

__all__ = ["MISSING", "span"]

_OTHERS = {"none": catalog.Text("No norm", "无归一化"), "unchanged": catalog.Text("As it is", "原模型")}
_PLACEMENTS = {
    "pre": catalog.Text(" (pre-norm)", "（pre-norm）"),
    "post": catalog.Text(" (post-norm)", "（post-norm）"),
    "peri": catalog.Text(" (peri-norm)", "（peri-norm）"),
    "sandwich": catalog.Text(" (sandwich)", "（sandwich norm）"),
    "qk": catalog.Text(" (QK-norm)", "（QK-norm）"),
}


def title(method: str, lang: str = "en") -> str:
    """The name of a method in a table, with its placement if that is part of the variant.

    >>> title("none"), title("none", "zh"), title("layer_norm:post")
    ('No norm', '无归一化', 'Layer norm (post-norm)')
    """
    method, _, placement = method.partition(":")
    where = _PLACEMENTS[placement].to(lang) if placement else ""
    return (_OTHERS[method] if method in _OTHERS else catalog.find(method).title).to(lang) + where


def inline(method: str, lang: str = "en") -> str:
    """The name of a method inside a sentence.

    >>> inline("batch_norm"), inline("rms_norm"), inline("batch_norm", "zh")
    ('batch norm', 'RMS norm', '批归一化')
    """
    if lang == "en" and method == "unchanged":
        return "the model as it is"
    return " ".join(word if word.isupper() else word.lower() for word in title(method, lang).split(" "))


def listing(names: Sequence[str], lang: str = "en", choice: bool = False) -> str:
    """Names as a list inside a sentence; with `choice`, one of them is to be chosen.

    >>> listing(["a", "b", "c"]), listing(["a", "b", "c"], choice=True), listing(["a", "b", "c"], "zh")
    ('a, b and c', 'a, b or c', 'a、b 和 c')
    """
    comma, last = ("、", "或" if choice else "和") if lang == "zh" else (", ", " or " if choice else " and ")
    text = last.join([comma.join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return chinese(text) if lang == "zh" else text


def chinese(text: str) -> str:
    """A Chinese sentence with spaces between Chinese characters and Latin letters or numbers.

    >>> chinese("使用动态 Tanh的网络，批量2时RMSE最低")
    '使用动态 Tanh 的网络，批量 2 时 RMSE 最低'
    """
    text = re.sub(r"(?<=[\u4e00-\u9fff])(?=[A-Za-z0-9])", " ", text)
    return re.sub(r"(?<=[A-Za-z0-9%×])(?=[\u4e00-\u9fff])", " ", text)


def both(text: catalog.Text) -> catalog.Text:
    """A text whose Chinese was put together from parts."""
    return catalog.Text(str(text), chinese(text.zh))


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal; the space does not break.

    >>> percent(0.0618)
    '6.2\xa0%'
    """
    return ERROR.value(value).replace("-", "−")


def error(interval: Interval | None, metric: Metric = ERROR, lang: str = "en") -> tuple[str, str]:
    """A value of the metric and its interval.

    >>> error(Interval(0.062, 0.051, 0.073, 8))
    ('6.2\\xa0%', '5.1 to 7.3')
    """
    if interval is None:
        return MISSING, ""
    return metric.value(interval.value), metric.span(interval.low, interval.high, lang)


def steps(median: tuple[float, bool] | None) -> str:
    """Steps to the target; a bound is written as one.

    >>> steps((74.0, False)), steps((400.0, True))
    ('74', '≥ 400')
    """
    if median is None:
        return MISSING
    value, bound = median
    return f"{'≥ ' if bound else ''}{value:.0f}"


def times(interval: Interval | None, lang: str = "en") -> tuple[str, str]:
    """A ratio and its interval.

    >>> times(Interval(1.2345, 1.19, 1.3, 60))
    ('1.23×', '1.19 to 1.30')
    """
    if interval is None:
        return MISSING, ""
    return f"{interval.value:.2f}×", span(f"{interval.low:.2f}", f"{interval.high:.2f}", lang)


def signed(interval: Interval | None, digits: int = 2, lang: str = "en") -> tuple[str, str]:
    """A difference with its sign.

    >>> signed(Interval(-0.041, -0.1, 0.02, 8))
    ('−0.04', '−0.10 to +0.02')
    """
    if interval is None:
        return MISSING, ""
    return plus(interval.value, digits), span(plus(interval.low, digits), plus(interval.high, digits), lang)


def difference(interval: Interval, metric: Metric = ERROR, lang: str = "en") -> tuple[str, str]:
    """A difference of the metric; for a share in percentage points.

    >>> difference(Interval(0.031, 0.012, 0.05, 8))
    ('+3.1', '+1.2 to +5.0')
    >>> difference(Interval(0.02, -9.4, 9.4, 2))
    ('+2.0', '−100.0 to +100.0')
    """
    # Two fractions differ by at most 1.
    least = -1.0 if metric.share else -math.inf
    low, high = (metric.difference(min(max(end, least), -least)) for end in (interval.low, interval.high))
    return metric.difference(interval.value), span(low, high, lang)


def turned(interval: Interval, sign: int) -> Interval:
    """An interval of the values with this sign.

    >>> turned(Interval(1.0, 0.5, 2.0, 8), -1)
    Interval(value=-1.0, low=-2.0, high=-0.5, n=8)
    """
    low, high = sorted((sign * interval.low, sign * interval.high))
    return Interval(sign * interval.value, low, high, interval.n)


def plus(value: float, digits: int = 2) -> str:
    """A number with a sign and a true minus; a value that rounds to 0 has no sign.

    >>> plus(0.001), plus(-0.5, 1)
    ('0.00', '−0.5')
    """
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def rate(value: float | None) -> str:
    """A learning rate with at most two significant digits.

    >>> rate(0.03162), rate(31620.0)
    ('0.032', '32000')
    """
    return MISSING if value is None else f"{float(f'{value:.2g}'):g}"


def options(chosen: Options) -> str:
    """Options of the optimizer as they would be written in a call.

    >>> options((("momentum", 0.9), ("nesterov", True)))
    'momentum=0.9, nesterov=True'
    """
    return ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in chosen)


def duration(seconds: float, lang: str = "en") -> str:
    """A time in minutes and seconds.

    >>> duration(131.4), duration(7.2), duration(131.4, "zh")
    ('2 min 11 s', '7 s', '2 分 11 秒')
    """
    minute, second = ("分", "秒") if lang == "zh" else ("min", "s")
    minutes, rest = divmod(math.floor(seconds), 60)
    return f"{minutes} {minute} {rest} {second}" if minutes else f"{rest} {second}"


def milliseconds(seconds: Sequence[float]) -> str:
    """The median of some step times.

    >>> milliseconds([0.001, 0.0025, 0.5])
    '2.50\xa0ms'
    """
    ordered = sorted(seconds)
    return f"{number(1000 * ordered[len(ordered) // 2])}\xa0ms" if ordered else MISSING


def size(count: int | None) -> str:
    """Bytes in a suitable unit.

    >>> size(812), size(81_920), size(3_500_000)
    ('812\xa0B', '80.0\xa0KiB', '3.34\xa0MiB')
    """
    if count is None:
        return MISSING
    value, unit = float(count), 0
    while value >= 1000 and unit < 3:
        value, unit = value / 1024, unit + 1
    return f"{number(value) if unit else count}\xa0{('B', 'KiB', 'MiB', 'GiB')[unit]}"


def probability(p: float | None) -> str:
    """A p value with two significant digits.

    >>> probability(0.01234), probability(1e-9), probability(None)
    ('0.012', '<\xa00.0001', '–')
    """
    if p is None or math.isnan(p):
        return MISSING
    return f"{p:.2g}" if p >= 1e-4 else "<\xa00.0001"


def effect(evidence: Evidence, lang: str = "en") -> tuple[str, str]:
    """An effect and its interval in the unit of the experiment; a bound is written as one."""
    mark = {"exact": "", "at least": "≥ ", "at most": "≤ ", "unknown": "≈ "}[evidence.bound]
    value, spread = in_unit(evidence, evidence.effect, lang)
    return mark + value, "" if mark else spread


def in_unit(evidence: Evidence, interval: Interval, lang: str = "en") -> tuple[str, str]:
    """A value and its interval in the unit of an experiment."""
    match evidence.unit:
        case "points":
            value, spread = difference(interval, ERROR, lang)
            return f"{value} {catalog.Text('points', '个百分点').to(lang)}", spread
        case "log2 ratio" | "log10 ratio":
            base = 2 if evidence.unit == "log2 ratio" else 10
            value, low, high = (_power(base, x) for x in (interval.value, interval.low, interval.high))
            return f"{value}×", span(low, high, lang)
    value, spread = signed(interval, 2 if abs(interval.value) > 0.01 else 4, lang)
    return (f"{value} nats" if evidence.unit == "nats" else value), spread


def _power(base: int, exponent: float) -> str:
    """`base**exponent` for any exponent."""
    if math.isinf(exponent):
        return "∞" if exponent > 0 else "0"
    return number(float(base) ** max(-300.0, min(300.0, exponent)))


def shown(value: float, form: Form) -> str:
    """A value of a variant in an experiment.

    >>> shown(0.25, "share"), shown(60.375, "steps"), shown(0.0021, "seconds")
    ('25.0\xa0%', '60', '2.10\xa0ms')
    """
    match form:
        case "share":
            return percent(value)
        case "steps":
            return f"{value:.0f}"
        case "seconds":
            return f"{number(1000 * value)}\xa0ms"
    return number(value)
