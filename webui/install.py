"""Run by the web UI before it starts."""

import launch

if not launch.is_installed("diffsolve"):
    launch.run_pip("install diffsolve", "diffsolve")
