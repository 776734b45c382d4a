"""Locks of files."""

import os
import subprocess
import sys

import pytest

from diffsolve.common import locks
from diffsolve.common.locks import exclusive, opened


def test_one_at_a_time_and_nothing_is_left(tmp_path):
    file = tmp_path / "f"
    with exclusive(file):
        assert os.listdir(tmp_path) == ["f.lock"]
        with pytest.raises(BlockingIOError, match="another run is writing"), exclusive(file):
            pass
        code = f"from diffsolve.common.locks import exclusive\nwith exclusive({str(file)!r}): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in other.stderr
    assert os.listdir(tmp_path) == []
    with exclusive(file), exclusive(None), exclusive(tmp_path / "g"):
        pass
    with pytest.raises(FileNotFoundError, match="in a folder that exists"), exclusive(tmp_path / "nowhere" / "f"):
        pass


def test_a_lock_that_a_killed_process_left_is_none(tmp_path):
    (tmp_path / "f.lock").write_bytes(b"")
    with exclusive(tmp_path / "f"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links of POSIX")
def test_a_link_laid_out_for_a_lock_is_not_followed(tmp_path):
    (tmp_path / "f.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"f\.lock"), exclusive(tmp_path / "f"):
        pass
    assert not (tmp_path / "precious").exists()


def test_a_file_removed_while_it_was_waited_for_is_made_again(tmp_path, monkeypatch):
    """Whoever had it removed it between the opening and the lock: the lock is of a file without a name then."""
    file, lock = tmp_path / "f", locks._lock

    def removed(*arguments):
        monkeypatch.setattr(locks, "_lock", lock)
        file.unlink()
        lock(*arguments)

    monkeypatch.setattr(locks, "_lock", removed)
    with opened(file) as handle:
        assert os.path.samestat(os.fstat(handle.fileno()), file.stat())
