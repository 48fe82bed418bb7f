"""Builds the documentation site in both languages: `make docs`, or `python docs/site/build.py --out build/site`.

Everything is made on this machine and nothing on a page asks the network. A warning of Sphinx ends the build.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

SITE = Path(__file__).parent
ROOT = SITE.parents[1]


# Imported before the processes begin, which are copies of this one; torch above all takes its time.
SHARED = (
    "builder.stage",
    "builder.extension",
    "myst_parser.sphinx_ext.main",
    "sphinx.builders.html",
    "sphinx.ext.napoleon",
)


def build(lang: str, sources: Path, out: Path) -> None:
    """Stage and build the site of one language; raises SystemExit with 1 if there is a warning."""
    from builder.stage import stage
    from sphinx.cmd.build import main

    stage(ROOT, sources, lang)
    arguments = [
        *("-q", "-W", "--keep-going", "-b", "html", "-t", lang),
        *("-c", SITE, "-d", sources / f"{lang}-doctrees"),
        *("-D", f"html_extra_path={sources / 'extra' / lang}"),
    ]
    sys.exit(main([str(each) for each in (*arguments, sources / lang, out / lang)]))


def main() -> int:
    """Stage the sources, and build both languages at the same time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder for the site")
    parser.add_argument("--work", type=Path, default=None, help="folder for what is needed while building")
    options = parser.parse_args()
    out = options.out.resolve()
    work = (options.work or out.parent / "site-work").resolve()
    start = time.monotonic()
    sys.path.insert(0, str(SITE))
    for module in SHARED:
        importlib.import_module(module)
    from builder.words import LANGUAGES

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build, args=(lang, work, out)) for lang in LANGUAGES]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [lang for lang, process in zip(LANGUAGES, processes, strict=True) if process.exitcode]
    if failed:
        print(f"The site was not built: {' and '.join(failed)} failed with what is above.", file=sys.stderr)
        return 1
    shutil.copyfile(SITE / "entry.html", out / "index.html")
    print(f"The site is in {out}: open {out / 'index.html'} ({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
