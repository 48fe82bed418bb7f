"""Search in Chinese: a run of Chinese characters is indexed by its characters and its pairs of neighbours.

No dictionary is needed, and a query is cut in the same way, so that every substring of a text is found. A dictionary
would cut words of the field, such as 批归一化, differently inside different sentences.
"""

from __future__ import annotations

import re

from sphinx.search import SearchLanguage

# Runs of Chinese characters, or words of other scripts.
_RUN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff]+)|[^\W\u3400-\u4dbf\u4e00-\u9fff]+")


class Chinese(SearchLanguage):
    """The language that Sphinx would otherwise search with jieba."""

    lang = "zh"
    language_name = "Chinese"
    js_stemmer_code = "class Stemmer { stemWord(word) { return word; } }"
    js_splitter_code = r"""
function splitQuery(query) {
  const chinese = "[\\u3400-\\u4dbf\\u4e00-\\u9fff]";
  const terms = [];
  for (const [run] of query.matchAll(new RegExp(`${chinese}+|(?:(?!${chinese})[\\p{L}\\p{N}_])+`, "gu"))) {
    if (run.length === 1 || !run.match(chinese)) terms.push(run);
    else for (let i = 0; i + 1 < run.length; i++) terms.push(run.slice(i, i + 2));
  }
  return terms;
}
"""

    def init(self, options: dict[str, str]) -> None:
        """Nothing is loaded."""

    def split(self, input: str) -> list[str]:
        """The terms of a text.

        >>> Chinese({}).split("批归一化 BatchNorm2d")
        ['批', '归', '一', '化', '批归', '归一', '一化', 'BatchNorm2d']
        """
        terms: list[str] = []
        for match in _RUN.finditer(input):
            run, chinese = match[0], match[1]
            terms += [*run, *(run[i : i + 2] for i in range(len(run) - 1))] if chinese else [run]
        return terms

    def stem(self, word: str) -> str:
        """Words are searched as they are written, in lower case."""
        return word.lower()

    def word_filter(self, stemmed_word: str) -> bool:
        """Numbers alone are not searched."""
        return not stemmed_word.isdigit()
