"""Run the examples, each in a process of its own: `python examples/run.py [FOLDER]`, by default the current one."""

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
folder.mkdir(parents=True, exist_ok=True)
for script in sorted(HERE.glob("*.py")):
    if script.name not in ("run.py", "server.py"):  # a server does not end; tests/serving runs it
        began = time.monotonic()
        subprocess.run([sys.executable, str(script)], cwd=folder, check=True)
        print(f"{script.name}: {time.monotonic() - began:.0f} s", flush=True)
