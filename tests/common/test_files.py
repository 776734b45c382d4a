"""Whole files: the new contents or the old, whatever goes wrong."""

import os
import stat
import threading

import pytest
import torch

import diffsolve as ds
from diffsolve.common.files import read_tensors, write_tensors, write_whole
from diffsolve.metrics import Statistics


def test_bytes_and_text(tmp_path):
    write_whole(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    write_whole(str(tmp_path / "a"), "ü\n")
    assert (tmp_path / "a").read_bytes() == "ü\n".encode()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_the_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, failing):
    (tmp_path / "a").write_bytes(b"before")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "a", b"after")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_a_name_that_somebody_laid_out_is_not_written_through(tmp_path, monkeypatch):
    """A partial file that exists, a link to somebody's file for one, is refused and stays."""
    (tmp_path / "precious").write_bytes(b"precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "known")
    link = tmp_path / ".diffsolve-known.partial"
    link.symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", b"after")
    assert link.is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_writers_at_once_leave_the_file_of_one(tmp_path):
    contents = [bytes([i]) * 100_000 for i in range(8)]
    writers = [threading.Thread(target=write_whole, args=(tmp_path / "a", data)) for data in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert os.listdir(tmp_path) == ["a"]


def test_a_long_name_and_a_folder_that_is_not_there(tmp_path):
    write_whole(tmp_path / ("x" * 255), b"1")
    with pytest.raises(FileNotFoundError, match="path must be in a folder that exists, got '.*nowhere/a'"):
        write_whole(tmp_path / "nowhere" / "a", b"1")


def test_tensors_with_a_note(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T}
    write_tensors(tmp_path / "t", tensors, "key", {"n": [1, None]})
    read, note = read_tensors(tmp_path / "t", "key")
    assert torch.equal(read["a"], tensors["a"])
    assert note == {"n": [1, None]}
    assert read_tensors(tmp_path / "t", "other")[1] == {}


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (ds.Tableau.load, "x.json"),
        (ds.State.load, "x.safetensors"),
        (Statistics.load, "x.npz"),
        (Statistics.load, "x.safetensors"),
    ],
)
@pytest.mark.parametrize("contents", [b"", b"nothing", b"\xff\xfe\x00\x01", b"[1]", b'{"format": "other"}'])
def test_loaders_name_the_file_that_is_none_of_theirs(tmp_path, load, name, contents):
    file = tmp_path / name
    file.write_bytes(contents)
    with pytest.raises(ValueError, match=f"must be .*, got .*{name}"):
        load(file)
    assert file.read_bytes() == contents


def test_savers_write_whole_files(tmp_path, monkeypatch):
    """Each of the savers goes through the one writer: nothing is left of a rename that fails."""
    model = ds.load("mixture-2d")
    run = ds.solve(model, (2, 2), solver="euler", steps=2, seed=0)
    statistics = Statistics.of(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    for save, name in (
        (run.tableau.save, "a.json"),
        (run.state.save, "a.safetensors"),
        (statistics.save, "a.npz"),
        (statistics.save, "b.safetensors"),
    ):
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path / name)
    assert os.listdir(tmp_path) == []
