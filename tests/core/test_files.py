"""Files appear whole or not at all; hostile paths and headers are refused."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from safelight.core.errors import InputError, OutputError, UnsafeInputError
from safelight.core.files import Limits, atomic_folder, atomic_write, digest, inside, is_temporary, remove_leftovers

KILLED_WRITING = """
import os, signal, sys
from pathlib import Path
from safelight.core.files import atomic_folder, atomic_write
with atomic_write(Path("image 0.5 µm.tif")) as part, atomic_folder(Path("volume.zarr")) as folder:
    part.write_text("half")
    (folder / "chunk").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_REPLACING = """
import os, signal
from pathlib import Path
from safelight.core.files import atomic_folder
rename = Path.rename
def rename_and_die(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = rename_and_die
with atomic_folder(Path("volume.zarr")) as folder:
    (folder / "chunk").write_text("new")
"""


def die(code: str, where: Path) -> None:
    """Run code that kills itself, so that no cleaning up happens."""
    assert subprocess.run([sys.executable, "-c", code], cwd=where, check=False).returncode < 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_whole_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "image.ome.tif"
    with atomic_write(target) as part:
        part.write_text("pixels")
        assert not target.exists()
        assert part.name.endswith(".ome.tif")  # writers choose the format by the suffix
        assert is_temporary(part)
    assert target.read_text() == "pixels"
    assert names(target.parent) == ["image.ome.tif"]


@pytest.mark.skipif(os.name == "nt", reason="Windows replaces no open file")
def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    target = tmp_path / "image.tif"
    target.write_text("old")
    with target.open() as reader:
        with atomic_write(target) as part:
            part.write_text("new, and longer")
        assert reader.read() == "old"
    assert target.read_text() == "new, and longer"


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "image.tif"
    target.write_text("old")

    def write() -> None:
        with atomic_write(target) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["image.tif"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_others_may_read_the_file_even_if_its_writer_is_secretive(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "weights") as part:
        part.unlink()
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "volume.zarr"
    for content in ("old", "new"):
        with atomic_folder(target) as part:
            (part / content).write_text(content)
        assert names(target) == [content]
    assert names(tmp_path) == ["volume.zarr"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "volume.zarr"
    with atomic_folder(target) as part:
        (part / "old").write_text("old")
    with pytest.raises(ValueError, match="no pixels"), atomic_folder(target) as part:
        raise ValueError("no pixels")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["volume.zarr"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "volume.zarr"
    with atomic_folder(target) as part:
        (part / "old").write_text("old")
    rename = Path.rename

    def refuse_new(self: Path, other: Path) -> Path:
        if ".part" in self.name:
            raise OSError(errno.EROFS, "read-only")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OutputError, match="read-only"), atomic_folder(target) as part:
        (part / "new").write_text("new")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["volume.zarr"]


def test_a_name_that_is_taken_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="folder: a folder has this name"), atomic_write(tmp_path / "folder"):
        pass
    with pytest.raises(OutputError, match="file: a file has this name"), atomic_folder(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match="is a file, not a folder"), atomic_write(tmp_path / "file" / "image.tif"):
        pass


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full. Try: free some space"),
        (errno.EROFS, "the disk is read-only. Try: choose another output folder"),
        (errno.EACCES, "writing is not allowed"),
        (errno.EIO, "Input/output error. Try: choose another output folder"),
    ],
)
def test_a_refused_write_names_the_output_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=said) as caught, atomic_write(tmp_path / "image.tif") as part:
        part.write_text("pixels")
    assert caught.value.path == tmp_path / "image.tif"
    assert names(tmp_path) == []


def test_a_network_disk_that_cannot_flush_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_folders(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with atomic_write(tmp_path / "image.tif") as part:
        part.write_text("pixels")
    assert (tmp_path / "image.tif").read_text() == "pixels"


def test_an_input_that_cannot_be_read_is_not_called_an_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "image.tif") as part:
        part.write_bytes((tmp_path / "missing.tif").read_bytes())


def fail_writing(path: Path, error: Exception) -> None:
    with atomic_write(path):
        raise error


HIDDEN = [OSError("90000 requested and 12766 written"), RuntimeError("unexpected pos 832 vs 726")]


@pytest.mark.parametrize("error", HIDDEN, ids=["numpy", "torch"])
def test_a_full_disk_that_a_writer_hides_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error)):
        fail_writing(tmp_path / "image.tif", error)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=4096))
    with pytest.raises(OutputError, match=r"image.tif: cannot be written: the disk is full") as caught:
        fail_writing(tmp_path / "image.tif", error)
    assert caught.value.__cause__ is error
    with pytest.raises(InputError, match="of its own"):
        fail_writing(tmp_path / "image.tif", InputError("an error of its own"))


def test_a_full_disk_that_rust_tells_in_words_is_told(tmp_path: Path) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OutputError, match="the disk is full"):
        fail_writing(tmp_path / "model.safetensors", ValueError(said))


@pytest.mark.skipif(os.name == "nt", reason="kills with a signal")
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    die(KILLED_WRITING, tmp_path)
    lookalike = tmp_path / ".notes.part"
    lookalike.touch()
    assert len(names(tmp_path)) == 3
    with atomic_write(tmp_path / "running.tif") as part:  # another run's, alive
        gone = remove_leftovers(tmp_path)
        assert part.exists()
    assert len(gone) == 2
    assert names(tmp_path) == [".notes.part", "running.tif"]


@pytest.mark.skipif(os.name == "nt", reason="kills with a signal")
def test_a_folder_lost_between_two_renames_comes_back(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "volume.zarr") as part:
        (part / "chunk").write_text("old")
    die(KILLED_REPLACING, tmp_path)
    assert not (tmp_path / "volume.zarr").exists()
    remove_leftovers(tmp_path)
    assert (tmp_path / "volume.zarr" / "chunk").read_text() == "old"
    assert names(tmp_path) == ["volume.zarr"]


def test_a_leftover_is_recognised_when_a_new_process_has_the_number(tmp_path: Path) -> None:
    leftover = tmp_path / f".image.tif.{os.getpid()}-0123abcd.part.tif"
    leftover.touch()
    os.utime(leftover, (1e9, 1e9))  # before this process began
    assert remove_leftovers(tmp_path) == [leftover]


@pytest.mark.parametrize("path", ["a.tif", "sub/a.tif", "sub\\a.tif", "sub/../a.tif", "."])
def test_paths_inside_are_taken(tmp_path: Path, path: str) -> None:
    assert inside(tmp_path, path).is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize(
    "path",
    [
        "../a.tif",
        "sub/../../a.tif",
        "..\\a.tif",
        "/etc/passwd",
        "C:\\a.tif",
        "c:a.tif",
        "\\\\server\\share\\a.tif",
        "//server/share/a.tif",
        "a\0.tif",
    ],
)
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnsafeInputError, match="leads out of the folder"):
        inside(tmp_path, path)


def test_symbolic_links_that_lead_out_or_nowhere_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    try:
        (root / "out").symlink_to(tmp_path)
        (root / "loop").symlink_to(root / "loop")
    except OSError:
        pytest.skip("this system makes no symbolic links")
    for path in ("out/a.tif", "loop/a.tif"):
        with pytest.raises(UnsafeInputError):
            inside(root, path)


def test_a_header_that_claims_terabytes_is_refused_before_allocating(tmp_path: Path) -> None:
    path = tmp_path / "liar.tif"
    path.write_bytes(bytes(1000))
    with pytest.raises(UnsafeInputError, match=r"liar.tif: its header claims 8.0 TiB of pixels, the file has 1000 B"):
        Limits().check_claim(path, 8 << 40, compressed=True)
    with pytest.raises(UnsafeInputError, match="header"):
        Limits().check_claim(path, -1, compressed=False)
    with pytest.raises(UnsafeInputError, match="header"):
        Limits().check_claim(path, 1001, compressed=False)
    Limits().check_claim(path, 1000, compressed=False)
    Limits().check_claim(path, 100_000, compressed=True)


def test_more_than_memory_holds_is_refused_before_allocating(tmp_path: Path) -> None:
    with pytest.raises(UnsafeInputError, match="read in parts"):
        Limits().check_allocation(tmp_path, 1 << 60)
    with pytest.raises(UnsafeInputError, match="more than the 10 B allowed"):
        Limits(max_bytes=10).check_allocation(tmp_path, 11)
    Limits(max_bytes=10).check_allocation(tmp_path, 10)


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 1)
    (tmp_path / "a").write_bytes(content)
    assert digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_digest_of_a_folder_tells_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    def make(name: str, *files: str) -> str:
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.name)
        return digest(tmp_path / name)

    first = make("first", "c/0/1", "c/0/10", "zarr.json")
    assert make("same", "zarr.json", "c/0/10", "c/0/1") == first
    assert make("moved", "c/1", "c/0/10", "zarr.json") != first
    (tmp_path / "same" / "zarr.json").write_text("changed")
    assert digest(tmp_path / "same") != first


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not text")
def test_names_that_are_not_text_have_a_digest(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.tif")).touch()
    assert len(digest(tmp_path)) == 64


def test_what_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.tif: cannot be read"):
        digest(tmp_path / "missing.tif")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes among files")
def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="this is no ordinary file"), atomic_write(pipe):
        pass
    assert pipe.is_fifo()
