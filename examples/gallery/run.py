"""Make the pictures of the gallery: `python examples/gallery/run.py [FOLDER]`, by default docs/gallery."""

import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
folder = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "docs" / "gallery").resolve()
folder.mkdir(parents=True, exist_ok=True)
sys.path.insert(0, str(HERE))
os.chdir(folder)
for script in sorted(HERE.glob("*.py")):
    if script.name not in ("run.py", "style.py"):
        print(script.stem, flush=True)
        runpy.run_path(str(script), run_name="__main__")
