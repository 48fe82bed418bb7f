"""The frame of a page around its content: the theme's, with the switch of languages, and with Chinese texts."""

from __future__ import annotations

import re
from html import escape

from builder.words import Text, say

_THEME = 'aria-label="Toggle Light / Dark / Auto color theme"'
_TEXTS = (
    (_THEME, Text('aria-label="Light, dark, or as the system"', 'aria-label="明亮、深色或跟随系统"')),
    ('aria-label="Toggle site navigation sidebar"', Text('aria-label="Navigation"', 'aria-label="导航"')),
    (
        'aria-label="Toggle table of contents sidebar"',
        Text('aria-label="Contents of this page"', 'aria-label="本页目录"'),
    ),
    ("Skip to content", Text("Skip to content", "跳到正文")),
    ("<span>Back to top</span>", Text("<span>Back to top</span>", "<span>回到顶部</span>")),
)
"""What the theme writes, and what is shown in its place."""
_OPTIONAL = (
    *(
        (f"<title>{name}</title>", Text(f"<title>{name}</title>", f"<title>{chinese}</title>"))
        for name, chinese in {
            "Contents": "目录",
            "Menu": "菜单",
            "Expand": "展开",
            "Light mode": "明亮",
            "Dark mode": "深色",
            "Auto light/dark, in light mode": "跟随系统（明亮）",
            "Auto light/dark, in dark mode": "跟随系统（深色）",
        }.items()
    ),
    (r"\bOn this page\b", Text("On this page", "本页内容")),
    (r"Toggle navigation of ", Text("Pages of ", "展开：")),
    (r"<span>(Next|下一页)</span>", Text("<span>Next</span>", "<span>下一页</span>")),
    (r"<span>(Previous|上一页)</span>", Text("<span>Previous</span>", "<span>上一页</span>")),
    (r'<div class="title">(Home|首页)</div>', Text('<div class="title">Start</div>', '<div class="title">开始</div>')),
)
"""The same, as patterns that only some pages have."""
_LEFT = re.compile(r'(<div class="left-details">).*?(</div>\s*<div class="right-details">)', re.DOTALL)


def framed(html: str, lang: str, switch: str, version: str) -> str:
    """The body of a page of the theme in the language of the site.

    Args:
        html: what the theme writes.
        lang: of the site.
        switch: the address of the same page in the other language.
        version: of normkit.

    Raises:
        ValueError: the theme writes something else, as a new version of it may.
    """
    for text, replacement in _TEXTS:
        if text not in html:
            raise ValueError(f"the theme's template is expected to contain {text!r}: adapt builder/frame.py to it")
        html = html.replace(text, replacement.to(lang))
    for pattern, replacement in _OPTIONAL:
        html = re.sub(pattern, replacement.to(lang), html)
    other = {"en": "zh-Hans", "zh": "en"}[lang]
    link = (
        f'<a class="nk-language" href="{escape(switch)}" hreflang="{other}" lang="{other}" '
        f'title="{escape(say("switch", lang))}">{say("other language", lang)}</a>'
    )
    html = _after(html, '<div class="content-icon-container">', link)
    html = _after(html, '<div class="header-right">', link)
    left, count = _LEFT.subn(rf"\g<1>normkit {version} · Apache-2.0 · Sphinx, Furo\g<2>", html)
    if count != 1:
        raise ValueError("the theme's footer is expected to have left and right details: adapt builder/frame.py to it")
    return left


def _after(html: str, place: str, addition: str) -> str:
    if html.count(place) != 1:
        raise ValueError(f"the theme's template is expected to contain {place!r} once: adapt builder/frame.py to it")
    return html.replace(place, place + addition)
