"""What the site takes from outside of docs/: sections of README.md, and the benchmarks' table, data and picture.

A page that holds `<!-- readme: Limits -->` gets that section of README.md, without its heading.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ("results.md", "results.json", "speed.png")


def on_files(files, config):
    for name in BENCHMARKS:
        path = ROOT / "benchmarks" / name
        files.append(File.generated(config, f"benchmarks/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    markdown = re.sub(r"<!-- readme: (.+?) -->", lambda match: section(match.group(1)), markdown)
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def section(title):
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"README.md has no section {title!r}.")
    return re.sub(r"\[(?:docs/)?([^\]]+)\]\(docs/", r"[\1](", found.group(1)).strip()
