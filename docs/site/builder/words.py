"""Short texts of generated pages and of the site's frame, in both languages."""

from __future__ import annotations

from collections.abc import Mapping

from normkit.catalog import LANGUAGES, Text

__all__ = ["LANGUAGES", "SECTIONS", "Text", "say"]

SECTIONS = (
    "install",
    "guides/index",
    "compare/index",
    "tools/index",
    "engine/index",
    "methods/index",
    "audit/index",
    "api/index",
    "gallery/index",
    "explorer",
    "migration",
    "glossary",
)
"""The entries of the sidebar after the start page, as names of pages."""

_NAVIGATION = {
    "index": Text("Start", "开始"),
    "install": Text("Install", "安装"),
    "guides/index": Text("Guides", "指南"),
    "compare/index": Text("Compare", "比较"),
    "tools/index": Text("Tools", "工具"),
    "engine/index": Text("Engine", "引擎"),
    "methods/index": Text("Methods", "方法"),
    "audit/index": Text("Audit rules", "检查规则"),
    "api/index": Text("API", "API"),
    "gallery/index": Text("Gallery", "实例"),
    "explorer": Text("Explorer", "统计域浏览器"),
    "migration": Text("Migration", "迁移"),
    "glossary": Text("Glossary", "术语表"),
}
"""The sidebar names a section in one word, which may differ from the heading of its page."""

_TEXTS: Mapping[str, Text] = {
    "other language": Text("中文", "English"),
    "switch": Text("本页的中文版", "This page in English"),
    # Methods
    "region": Text("Region", "统计域"),
    "statistics": Text("Statistics per", "统计粒度"),
    "state": Text("State", "状态"),
    "use": Text("Where used", "适用场景"),
    "aliases": Text("Also called", "别名"),
    "layers": Text("Layers", "层"),
    "function": Text("Function", "函数"),
    "applied": Text("Applied by", "使用方式"),
    "eps": Text("Default `eps`", "`eps` 默认值"),
    "eps of dtype": Text("machine epsilon of the dtype", "所用数据类型的机器精度"),
    "formula": Text("Formula", "公式"),
    "example": Text("Example", "示例"),
    "claims": Text("Strengths and weaknesses", "优点与缺点"),
    "claims lead": Text(
        "These are claims of papers and of practice. Where an experiment of the [built-in study]({study}) tests a "
        "claim, its verdict is shown. A verdict holds for the networks and the data of that study.",
        "以下是论文与实践中的说法。[内置研究]({study})中有实验检验某条说法时，给出其结论。结论只适用于该研究的网络与数据。",
    ),
    "strengths": Text("Claimed strengths", "据称的优点"),
    "weaknesses": Text("Claimed weaknesses", "据称的缺点"),
    "measured": Text("Experiments on these claims", "检验这些论断的实验"),
    "measured lead": Text(
        "An effect is positive if the claim holds. The interval in the table is the 95 % interval of the experiment "
        "alone; verdicts use p values and intervals that are corrected over all experiments.",
        "效应为正表示论断成立。表中为单个实验的 95 % 置信区间；结论依据对全部实验校正后的 p 值与置信区间。",
    ),
    "claim": Text("Claim", "论断"),
    "question": Text("Question", "问题"),
    "verdict": Text("Verdict", "结论"),
    "effect": Text("Effect", "效应"),
    "interval": Text("95 % interval", "95 % 置信区间"),
    "result": Text("Result in the comparison", "比较中的结果"),
    "result lead": Text(
        "Task: {task}. {metric}, mean over {seeds} seeds with its 95 % interval.",
        "任务：{task}。{metric}，{seeds} 个随机种子的均值及 95 % 置信区间。",
    ),
    "batch": Text("Batch size", "批量"),
    "value": Text("Value", "数值"),
    "place": Text("Place", "名次"),
    "paper": Text("Paper", "论文"),
    "all methods": Text("All methods", "全部方法"),
    "cube": Text("{name}: one mean and one variance per {statistics}", "{name}：{statistics}共用一个均值和一个方差"),
    "cube plain": Text("{name}: {formula}", "{name}：{formula}"),
    "not a region": Text("no region", "不是统计域"),
    # API
    "api": Text("API", "API"),
    "api lead": Text(
        "Every public name, with its signature and its docstring.",
        "全部公开名称及其签名与文档字符串。",
    ),
    "english": Text("", "以下文档字符串为英文。"),
    "reports": Text("Reports and other classes", "报告及其他类"),
    # Gallery
    "open report": Text("Open the report", "打开报告"),
    "runs": Text("training runs", "次训练"),
    "seeds": Text("seeds", "个随机种子"),
    "methods": Text("methods", "种方法"),
    "experiments": Text("experiments", "项实验"),
    "repeat": Text("Repeat it", "重复这项研究"),
    "figure": Text(
        "{metric} of each method at batch size {size}: seeds, mean and interval",
        "批量 {size} 时各方法的{metric}：随机种子、均值与置信区间",
    ),
}


def say(key: str, lang: str, **values: object) -> str:
    """A text in one language."""
    return _TEXTS[key].to(lang).format(**values)


def navigation(page: str, lang: str) -> str:
    """The name of a section in the sidebar."""
    return _NAVIGATION[page].to(lang)
