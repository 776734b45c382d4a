"""What the package's metadata says of its home: addresses, and the README's links made absolute for a package index.

A repository does not know where it will be published. A release does: `DIFFSOLVE_HOME=https://host/owner/name python -m
build`, which the release workflow sets. Without it the package has no addresses, and the README's links stay relative.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")
PICTURES = (".png", ".svg", ".jpg")


def absolute(text: str, home: str, tag: str) -> str:
    """The Markdown text with its relative links at that tag of the repository at `home`."""

    def link(match: re.Match[str]) -> str:
        target = match[1]
        kind = "raw" if target.endswith(PICTURES) else "tree" if target.endswith("/") else "blob"
        return f"]({home}/{kind}/{tag}/{target.rstrip('/')})"

    return RELATIVE.sub(link, text)


class HomeHook(MetadataHookInterface):
    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        home = os.environ.get("DIFFSOLVE_HOME", "").rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {}
        if home:
            tag = f"v{metadata['version']}"
            text = absolute(text, home, tag)
            metadata["urls"] = {
                "Source": home,
                "Issues": f"{home}/issues",
                "Changelog": f"{home}/blob/{tag}/CHANGELOG.md",
                "Documentation": f"{home}/blob/{tag}/docs/index.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
