"""What a release adds to the package: the addresses of its home, and loops compiled ahead.

A repository does not know where it will be published. A release does: `DIFFSOLVE_HOME=https://host/owner/name python -m
build`, which the release workflow sets, gives the package its addresses and makes the README's links absolute, as a
package index needs them. Without it the package has no addresses, and the links stay relative.

`DIFFSOLVE_BUILT=x86_64 python -m build --wheel`, on such a machine with Linux and a C compiler, makes a wheel for it
that brings the compiled loops, for users who have no compiler; without, the wheel runs anywhere and has their source.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
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


class LoopsHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        machine = os.environ.get("DIFFSOLVE_BUILT", "")
        if not machine or version == "editable":
            return
        native = Path(self.root) / "diffsolve" / "native"
        flags = runpy.run_path(str(native / "flags.py"))
        known = sorted(flags["LEVELS"])
        if sys.platform != "linux" or machine not in known or machine != platform.machine():
            raise ValueError(f"DIFFSOLVE_BUILT must be what this machine is, of {known} with Linux, got {machine!r}")
        self.folder = tempfile.TemporaryDirectory()  # gone when the build ends
        compiler = [*shlex.split(os.environ.get("CC") or "cc"), *flags["FLAGS"], f"-march={flags['LEVELS'][machine]}"]
        for real in flags["REALS"]:
            built = Path(self.folder.name) / flags["file_name"](machine, real)
            subprocess.run([*compiler, f"-DREAL={real}", str(native / "loops.c"), "-o", str(built)], check=True)
            build_data["force_include"][str(built)] = f"diffsolve/native/{built.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"
