"""The site: every page is found from its menu, every picture of the gallery has its script."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MENU = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]


def test_every_page_is_in_the_menu():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    listed = set(re.findall(r"([a-z_/-]+\.md)", MENU))
    assert pages <= listed, pages - listed


def test_the_front_page_leads_to_every_task():
    front = (ROOT / "docs" / "index.md").read_text()
    linked = set(re.findall(r"\]\(([a-z-]+\.md)\)", front))
    tasks = {"start", "which-solver", "tuning", "distillation", "training", "likelihood", "editing", "benchmarking"}
    assert {f"{task}.md" for task in tasks | {"integrations", "parallel", "gallery"}} <= linked


def test_every_picture_has_its_script():
    scripts = {script.stem for script in (ROOT / "examples" / "gallery").glob("*.py")} - {"run", "style"}
    assert scripts == {picture.stem for picture in (ROOT / "docs" / "gallery").glob("*.png")}
    assert len(scripts) >= 12
