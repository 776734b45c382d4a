"""Links from a page of docs/ to files beside docs/, which are pages of the site under other names."""

from __future__ import annotations

import re
from typing import Any

BESIDE = {
    "../README.md": "readme.md", "../CONTRIBUTING.md": "contributing.md", "../CHANGELOG.md": "changelog.md",
    "../benchmarks/README.md": "benchmarks.md", "../examples/README.md": "examples.md",
}  # fmt: skip
RESULT = re.compile(r"\]\(\.\./benchmarks/results/([a-z_]+)\.md\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    for there, here in BESIDE.items():
        markdown = markdown.replace(f"]({there}", f"]({here}")
    return RESULT.sub(r"](measured/\1.md)", markdown)
