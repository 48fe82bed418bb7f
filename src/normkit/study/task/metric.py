"""The metric of the reported results: its name, and how its values are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from normkit.catalog import Text

MISSING = "–"


@dataclass(frozen=True)
class Metric:
    """The metric of the results.

    Attributes:
        name: the name as it follows "test", such as "error" or "mean squared error".
        share: whether it is a fraction from 0 to 1, written as a percentage.
        higher_is_better: its direction.
    """

    name: Text
    share: bool
    higher_is_better: bool = False

    def value(self, value: float) -> str:
        """A value as in a table.

        >>> ERROR.value(0.0618), LOSS.value(3.7)
        ('6.2\\xa0%', '3.70')
        """
        if not math.isfinite(value):
            return MISSING
        return f"{100 * value:.1f}\xa0%" if self.share else number(value)

    def span(self, low: float, high: float, lang: str = "en") -> str:
        """An interval; for a share it is limited to the range from 0 to 1.

        >>> ERROR.span(-0.01, 0.05), LOSS.span(3.5, 3.9, "zh")
        ('0.0 to 5.0', '3.50 至 3.90')
        """
        if self.share:
            low, high = max(0.0, low), min(1.0, high)
            return span(f"{100 * low:.1f}", f"{100 * high:.1f}", lang)
        return span(number(low), number(high), lang)

    def difference(self, value: float) -> str:
        """A difference of two values; for a share, in percentage points.

        >>> ERROR.difference(-0.031), LOSS.difference(0.25)
        ('−3.1', '+0.250')
        """
        text = f"{100 * value:+.1f}" if self.share else ("+" if value > 0 else "") + number(value)
        return text.lstrip("+-") if not float(text.replace("−", "-")) else text.replace("-", "−")

    def amount(self, value: float, lang: str = "en") -> str:
        """A size of a difference, in words.

        >>> ERROR.amount(0.01), ERROR.amount(0.02, "zh"), LOSS.amount(0.25)
        ('1 point', '2 个百分点', '0.25')
        """
        if not self.share:
            return f"{value:g}"
        points = f"{100 * value:g}"
        return f"{points} 个百分点" if lang == "zh" else f"{points} point{'s' * (points != '1')}"

    def label(self, part: str) -> Text:
        """The name of the metric on a part of the data: "test", "training" or "validation".

        >>> LOSS.label("test").to("zh")
        '测试损失'
        """
        space = " " if self.name.zh.isascii() else ""
        return Text(f"{part} {self.name}", f"{_PARTS[part]}{space}{self.name.zh}")


_PARTS = {"test": "测试", "training": "训练", "validation": "验证"}
ERROR = Metric(Text("error", "错误率"), True)
LOSS = Metric(Text("loss", "损失"), False)
UNNAMED = Text("metric", "指标")


def named(name: str) -> Text:
    """A name from the user, or the name of a function, in both languages.

    >>> named("mean_squared_error"), named("<lambda>").zh
    ('mean squared error', '指标')
    """
    if isinstance(name, Text):
        return name
    plain = name.replace("_", " ").strip()
    return Text(plain, plain) if plain and not plain.startswith("<") else UNNAMED


def number(value: float) -> str:
    """Three significant digits, a true minus sign.

    >>> number(3.7), number(0.012345), number(12345.0), number(-0.5), number(0.0)
    ('3.70', '0.0123', '12345', '−0.500', '0')
    """
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}".replace("-", "−")


def span(low: str, high: str, lang: str = "en") -> str:
    """The range from one number to another."""
    return f"{low} 至 {high}" if lang == "zh" else f"{low} to {high}"
