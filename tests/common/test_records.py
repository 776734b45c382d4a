"""Files of JSON lines that are continued."""

import json
import os
import subprocess
import sys

import pytest

from diffsolve.common.records import Records, read

SETTINGS = {"model": "m", "num": 3}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_written_read_and_continued(tmp_path):
    file = tmp_path / "r.jsonl"
    with Records(file, SETTINGS) as records:
        assert records.entries == []
        records.append({"a": 1})
        records.append({"a": 2}, {"a": 3})
        assert records.entries == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert lines(file) == [SETTINGS, {"a": 1}, {"a": 2}, {"a": 3}]
    before = file.read_bytes()
    with Records(file, dict(reversed(SETTINGS.items()))) as records:  # the order does not count
        assert records.entries == [{"a": 1}, {"a": 2}, {"a": 3}]
        assert file.read_bytes() == before  # opening it writes nothing
        records.append({"a": 4})
    assert file.read_bytes().startswith(before)
    assert read(file) == (SETTINGS, [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}])


def test_it_goes_on_after_any_cut(tmp_path):
    file = tmp_path / "r.jsonl"
    with Records(file, SETTINGS) as records:
        records.append({"a": "ü\u2028"}, {"a": 2})
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with Records(file, SETTINGS) as records:
            records.append(*[{"a": "ü\u2028"}, {"a": 2}][len(records.entries) :])
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"my notes, without an end of line", "line 1 must be a JSON object, got 'my notes"),
        (b"my notes\n", "line 1 must be a JSON object"),
        (b"\n", "line 1 must be a JSON object, got ''"),
        (b"\xff\xfe\n", "line 1 must be a JSON object"),
        (b"[1]\n", r"line 1 must be a JSON object, got '\[1\]'"),
        (b'{"model": "m", "num": 4}\n{"a": 1}\n{"a"', "num=4 there and 3 here"),
        (b'{"other": 1}\n', "other=1 there and None here"),
        (b'{"model": "m", "num": 3}\n{"a": 1}\nnothing\n{"a": 2}\n', "line 3 must be a JSON object, got 'nothing'"),
        (b'{"model": "m", "num": 3', "line 1 must be a JSON object"),
    ],
)
def test_files_of_others_are_refused_and_not_touched(tmp_path, contents, says):
    file = tmp_path / "r.jsonl"
    file.write_bytes(contents)
    before = file.stat().st_mtime_ns
    settings = SETTINGS if contents != b'{"model": "m", "num": 3' else {"num": 3}
    with pytest.raises(ValueError, match=says) as refused:
        Records(file, settings)
    assert str(file) in str(refused.value)
    assert file.read_bytes() == contents
    assert file.stat().st_mtime_ns == before


def test_a_second_writer_is_refused(tmp_path):
    file = tmp_path / "r.jsonl"
    with Records(file, SETTINGS) as records:
        records.append({"a": 0})
        with pytest.raises(BlockingIOError, match="another run is writing"):
            Records(file, SETTINGS)
        code = f"from diffsolve.common.records import Records; Records({str(file)!r}, {SETTINGS!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in other.stderr
        assert read(file) == (SETTINGS, [{"a": 0}])  # readers are not kept out
        records.append({"a": 1})
    with Records(file, SETTINGS) as records:
        assert records.entries == [{"a": 0}, {"a": 1}]


def test_the_lock_goes_with_a_refusal(tmp_path):
    file = tmp_path / "r.jsonl"
    with Records(file, SETTINGS) as records:
        records.append({"a": 1})
    with pytest.raises(ValueError, match="other settings"):
        Records(file, {"num": 4})
    Records(file, SETTINGS).close()


def test_a_line_that_cannot_be_written_leaves_no_part(tmp_path, monkeypatch):
    file = tmp_path / "r.jsonl"
    with Records(file, SETTINGS) as records:
        records.append({"a": 1})
        before = file.read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
            with pytest.raises(OSError, match="no space left"):
                records.append({"b": 2}, {"b": 3})
        assert file.read_bytes() == before
        assert records.entries == [{"a": 1}]
        records.append({"a": 2})
    assert lines(file) == [SETTINGS, {"a": 1}, {"a": 2}]


def test_nothing_is_touched_before_the_first_record(tmp_path):
    """A run that fails before, for a wrong option, leaves no file that refuses the right one."""
    file = tmp_path / "r.jsonl"
    with Records(file, SETTINGS):
        assert file.read_bytes() == b""
    assert not file.exists()
    Records(file, {"num": "nan"}).close()
    file.write_bytes(b"")
    Records(file, SETTINGS).close()
    assert file.exists()  # somebody else's, if empty


def test_records_are_found_by_their_key(tmp_path):
    file = tmp_path / "r.jsonl"
    with Records(file, SETTINGS, key=lambda entry: entry["i"]) as records:
        records.append({"i": 3}, {"i": 5}, {"i": 3, "late": True})
        assert records.found == {3: {"i": 3}, 5: {"i": 5}}
    with Records(file, SETTINGS, key=lambda entry: entry["i"]) as records:
        assert records.found == {3: {"i": 3}, 5: {"i": 5}}
    with pytest.raises(ValueError, match="line 2 must be a record of this kind, got {'i': 3}: it has no 'j'"):
        Records(file, SETTINGS, key=lambda entry: entry["j"])


def test_force_starts_anew_with_the_first_record(tmp_path):
    file = tmp_path / "r.jsonl"
    with Records(file, {"num": 4}) as records:
        records.append({"a": 1})
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"num=4 there and 3 here.* start anew with force \(--force\)"):
        Records(file, SETTINGS)
    with Records(file, SETTINGS, force=True) as records:
        assert records.entries == []
        assert file.read_bytes() == before
        records.append({"a": 2})
    assert lines(file) == [SETTINGS, {"a": 2}]
    file.write_bytes(b"my notes\n")
    with pytest.raises(ValueError, match="line 1 must be a JSON object"):
        Records(file, SETTINGS, force=True)
    assert file.read_bytes() == b"my notes\n"


def test_numbers_are_those_of_json(tmp_path):
    with Records(tmp_path / "r.jsonl", SETTINGS) as records:
        records.append({"a": 1.0})
        for bad in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="numbers in a file must be finite"):
                records.append({"a": bad})
    assert lines(tmp_path / "r.jsonl") == [SETTINGS, {"a": 1.0}]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="in a folder that exists"):
        Records(tmp_path / "nowhere" / "r.jsonl", SETTINGS)
