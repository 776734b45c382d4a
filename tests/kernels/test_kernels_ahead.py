"""What the Triton kernels become on real targets: compiled ahead of time, in a process without the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # CI runs it by a line of its own

REGISTERS = 96
"""The bound on registers per thread: at 128 threads a program, 20 programs of an H100 multiprocessor fit at once."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "DIFFSOLVE_KERNELS")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # compile, whatever was compiled before
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels.py"
    done = subprocess.run([sys.executable, str(script), "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_on_every_target(found):
    assert {f["target"] for f in found} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    cases = {f["case"] for f in found}
    assert len(found) == 4 * len(cases)
    assert {c.split(",")[0] for c in cases} >= {"dpmpp-2m", "ancestral", "window", "moments"}


def test_nothing_spills(found):
    for f in found:
        assert f["spills"] == 0, f
        assert f["local"] == 0, f
        assert f["registers"] <= REGISTERS, f


def test_every_operand_once_and_128_bits_wide(found):
    """Bytes per element, counted in the PTX, against the sum of the operands' sizes."""
    counted = [f for f in found if f["reads"] is not None]
    assert len(counted) == 3 * len({f["case"] for f in found})
    for f in counted:
        assert f["reads"] == f["must_read"], f
        assert f["writes"] == f["must_write"], f
        assert f["narrow"] == 0, f
