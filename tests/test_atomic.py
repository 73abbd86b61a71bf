"""Whole or not there: what a failure half-way leaves, for a file and for a folder."""

import errno
import os
import tempfile

import pytest

from vopd_recipes.files import check_writable, written_whole
from vopd_recipes.recipe import RecipeError


def test_a_file_appears_when_it_is_done_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with written_whole(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_older_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("older")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "older"


def test_a_folder_starts_empty_and_does_not_replace_one(tmp_path):
    path = tmp_path / "model"
    for _ in range(2):  # the second time over what the first, cut off, left behind
        with pytest.raises(RuntimeError), written_whole(path) as temporary:
            temporary.mkdir()
            (temporary / "stale").touch()
            raise RuntimeError
    with written_whole(path) as temporary:
        temporary.mkdir()
        (temporary / "weights").touch()
    assert [file.name for file in path.iterdir()] == ["weights"]
    with pytest.raises(OSError), written_whole(path) as temporary:
        temporary.mkdir()


def test_nothing_has_its_name_before_the_disk_has_it(tmp_path, monkeypatch):
    """What a disk does not take leaves the older file, and no folder; links to other files are not waited for."""

    def broken(handle):
        raise OSError(errno.EIO, "Input/output error")

    older, folder = tmp_path / "older.txt", tmp_path / "folder"
    older.write_text("older")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"), written_whole(older) as temporary:
        temporary.write_text("newer")
    with pytest.raises(OSError, match="Input/output"), written_whole(folder) as temporary:
        (temporary / "below").mkdir(parents=True)
        (temporary / "below" / "file").touch()
    assert older.read_text() == "older" and not folder.exists()
    with written_whole(folder) as temporary:
        temporary.mkdir()
        os.link(older, temporary / "link")
    assert (folder / "link").read_text() == "older"


def test_a_place_is_tried_before_it_is_needed(tmp_path):
    place = tmp_path / "new" / "folder"
    check_writable(place, "--output")
    assert place.is_dir() and list(place.iterdir()) == []
    (place / "file").touch()
    for wrong, why in ((place / "file", "File exists"), (place / "file" / "below", "Not a directory")):
        with pytest.raises(RecipeError) as caught:
            check_writable(wrong, "--output")
        assert str(caught.value) == f"--output: nothing can be written to {wrong} ({why}); name another place"


def test_a_full_disk_is_no_place(tmp_path, monkeypatch):
    """Where a file can be made and nothing fits into it."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115, PTH123
    with pytest.raises(RecipeError, match="No space left on device"):
        check_writable(tmp_path, "--output")
