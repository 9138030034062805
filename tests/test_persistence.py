"""A model folder is whole at every moment: nothing acknowledged is lost, and no damage goes unnamed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from valuegraph import manifest as manifest_module
from valuegraph import wal
from valuegraph.durable import LOCK, WriterLock
from valuegraph.manifest import CONFIG, LOG, MANIFEST
from valuegraph.persistence import (
    FORMAT_VERSION,
    FolderBusyError,
    FolderWriter,
    ModelFolderError,
    read_folder,
    verify_folder,
    write_folder,
)
from valuegraph.tensor_file import read_tensors, tensor_chunks
from valuegraph.wal import WriteAheadLog
from valuegraph.wal_format import LogError, LogReader, encode_frame

FAULTS = Path(__file__).parent / "faults"
ROOT = Path(__file__).parents[1]
PARTS = {
    "config": {"dim": 4, "encoder": {"id": "an encoder", "hash": None}},
    "tensors": {
        "learner": {"w": np.arange(12, dtype=np.float32).reshape(3, 4)},
        "graph": {"h": np.full(3, 0.5)},
    },
    "blobs": {"index.faiss": bytes(range(256))},
    "documents": {"exemplars": ["You open the fridge.", "雪", "\ud800"]},
}


@pytest.fixture
def folder(tmp_path):
    """A model with two updates since its snapshot, and a third that the snapshot contains."""
    path = tmp_path / "model"
    with FolderWriter(path) as writer:
        writer.log.append(b"contained")
        writer.snapshot(**PARTS)
        writer.log.append_many([b"first", b"second" * 20])
    return path


def same(folder, parts=PARTS) -> bool:
    return (
        folder.config == {"format_version": FORMAT_VERSION} | parts["config"]
        and folder.blobs == parts["blobs"]
        and folder.documents == parts["documents"]
        and all(
            np.array_equal(folder.tensors[name][key], array)
            for name, group in parts["tensors"].items()
            for key, array in group.items()
        )
    )


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with open(path, "r+b", buffering=0) as file:  # in place: rewriting a thousand times would cost seconds
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def python(code: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def harness(script: str, *arguments: str) -> dict:
    result = subprocess.run(
        [sys.executable, str(FAULTS / script), *arguments], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


# --- The folder


def test_what_was_written_is_read(folder):
    read = read_folder(folder)
    assert same(read)
    assert (read.snapshot, read.last_sequence) == (1, 1)
    assert [tuple(record) for record in read.updates] == [(2, b"first"), (3, b"second" * 20)]
    assert read.notices == ()
    read.tensors["learner"]["w"][0, 0] = 7  # arrays have memory of their own
    assert same(read_folder(folder, verify=False))


def test_the_folder_holds_what_the_contract_says(folder):
    names = {"config.json", "exemplars.json", "graph.safetensors", "index.faiss", "learner.safetensors"}
    assert set(os.listdir(folder)) == names | {MANIFEST, LOG}
    assert json.loads((folder / CONFIG).read_text()) == {"format_version": FORMAT_VERSION, **PARTS["config"]}
    # Another implementation of the format reads the tensors.
    theirs = safetensors.numpy.load_file(folder / "learner.safetensors")
    np.testing.assert_array_equal(theirs["w"], PARTS["tensors"]["learner"]["w"], strict=True)
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == names


def test_saving_again_replaces_everything(folder):
    parts = {"config": {"dim": 5}, "tensors": {"learner": {"v": np.zeros(2)}}, "blobs": {}, "documents": {}}
    assert write_folder(folder, **parts) == 2
    read = read_folder(folder)
    assert same(read, parts)
    assert (read.snapshot, read.updates) == (2, ())
    assert set(os.listdir(folder)) == {"config.json", "learner.safetensors", MANIFEST, LOG}


DTYPES = ("?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8")


def test_tensors_agree_with_the_safetensors_library_in_both_directions(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {code: rng.integers(0, 2, (3, 5)).astype(code) for code in DTYPES}
    tensors |= {
        "scalar": np.array(2.5),
        "empty": np.empty((0, 7), np.float16),
        "fortran": np.asfortranarray(rng.random((2, 3))),
    }
    tensors["big-endian"], tensors["strided"] = np.arange(4, dtype=">i4"), np.arange(10)[::3]
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    ours.write_bytes(b"".join(tensor_chunks(tensors)))
    plain = {
        name: np.array(array, array.dtype.newbyteorder("="), order="C") for name, array in tensors.items()
    }
    safetensors.numpy.save_file(plain, theirs, metadata={"format": "np"})
    for path in (ours, theirs):
        seen = bytearray()
        with open(path, "rb", buffering=0) as file:
            mine = read_tensors(file, path.stat().st_size, seen.extend)
        assert bytes(seen) == path.read_bytes()
        for read in (mine, safetensors.numpy.load_file(path)):
            assert read.keys() == plain.keys()
            for name, array in plain.items():
                np.testing.assert_array_equal(read[name], array, strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"x": float("nan")}}, "config: cannot be stored as JSON"),
        ({"config": {"x": object()}}, "config: cannot be stored as JSON"),
        ({"documents": {"d": [float("inf")]}}, "d: cannot be stored as JSON"),
        ({"tensors": {"t": {"w": np.array(["text"])}}}, "tensor 'w': safetensors has no type for <U4"),
        ({"tensors": {"t": {"w": np.array([None])}}}, "tensor 'w': safetensors has no type for object"),
        ({"blobs": {"../escape": b""}}, "'../escape' cannot be the name"),
        ({"blobs": {".hidden": b""}}, "'.hidden' cannot be the name"),
        ({"blobs": {LOG: b""}}, f"'{LOG}' cannot be the name"),
        ({"blobs": {MANIFEST: b""}}, f"'{MANIFEST}' cannot be the name"),
        ({"blobs": {"learner.safetensors": b""}}, "same file name"),
        ({"documents": {"config": []}}, "same file name"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(folder, change, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        write_folder(folder, **PARTS | change)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / CONFIG).write_text("mine")
    with pytest.raises(ModelFolderError, match=r"config\.json: is in the way"):
        write_folder(tmp_path, **PARTS)
    assert (tmp_path / CONFIG).read_text() == "mine"
    (tmp_path / CONFIG).unlink()
    (tmp_path / "notes.txt").write_text("mine too")
    write_folder(tmp_path, **PARTS)
    assert same(read_folder(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine too"


# --- Damage


def test_no_such_folder_or_not_a_model(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for path, message in (
        (tmp_path / "none", "no such folder"),
        (file, "is a file, not a model folder"),
        (tmp_path, "not a model"),
    ):
        with pytest.raises(ModelFolderError, match=message) as caught:
            read_folder(path)
        assert str(path) in str(caught.value)
        assert [finding.damage for finding in verify_folder(path)] == [True]
    with pytest.raises(ModelFolderError, match="is not a folder"):
        write_folder(file, **PARTS)


NAMES = ("config.json", "exemplars.json", "graph.safetensors", "index.faiss", "learner.safetensors")


@pytest.mark.parametrize("name", [*NAMES, LOG])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=f"{folder / name}: is missing"):
        read_folder(folder)
    assert [(f.file, f.damage) for f in verify_folder(folder)] == [(name, True)]


def test_without_its_manifest_a_model_is_not_written_over(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(ModelFolderError, match=r"manifest.json is missing"):
        read_folder(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ModelFolderError, match=r"manifest.json: is missing"):
        write_folder(folder, **PARTS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_every_flipped_byte_is_found_and_named(folder, name):
    path = folder / name
    size = path.stat().st_size
    for offset in range(size):
        flip(path, offset, bit=offset % 8)
        with pytest.raises(ModelFolderError, match=f"{path}: ") as caught:
            read_folder(folder)
        assert not isinstance(caught.value, LogError)
        flip(path, offset, bit=offset % 8)
    assert same(read_folder(folder))
    flip(path, size // 2)
    assert [finding.file for finding in verify_folder(folder)] == [name]


@pytest.mark.parametrize("name", [*NAMES, MANIFEST])
def test_a_file_cut_short_or_grown_is_named(folder, name):
    path = folder / name
    sound = path.read_bytes()
    for data in (*(sound[:size] for size in range(0, len(sound), 7)), sound + b"\0", sound + b"\n"):
        path.write_bytes(data)
        with pytest.raises(ModelFolderError, match=f"{path}: "):
            read_folder(folder)


def test_control_without_the_checksum_a_flipped_byte_goes_unseen(folder):
    flip(folder / "index.faiss", 100)
    read = read_folder(folder, verify=False)
    assert read.blobs["index.faiss"] != PARTS["blobs"]["index.faiss"]


@pytest.mark.parametrize("name", [CONFIG, MANIFEST])
def test_a_newer_format_is_recognised(folder, name):
    body = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(body | {"format_version": 2}))
    message = r"was written by a newer valuegraph \(format 2\), this one reads up to 1"
    with pytest.raises(ModelFolderError, match=f"{folder / name}: {message}"):
        read_folder(folder)
    if name == CONFIG:  # a newer format may have no manifest at all
        (folder / MANIFEST).unlink()
        with pytest.raises(ModelFolderError, match=f"{folder / name}: {message}"):
            read_folder(folder)
    else:
        with pytest.raises(ModelFolderError, match=f"{folder / name}: {message}"):
            write_folder(folder, **PARTS)


def test_a_manifest_cannot_point_outside_its_folder(folder):
    body = json.loads((folder / MANIFEST).read_text())
    body["files"]["../outside"] = body["files"]["index.faiss"]
    (folder / MANIFEST).write_bytes(manifest_module._seal(body))
    with pytest.raises(ModelFolderError, match=r"'\.\./outside' cannot be the name"):
        read_folder(folder)


def test_a_log_that_does_not_go_with_the_snapshot_is_refused(folder, tmp_path):
    shutil.copy(folder / LOG, tmp_path / "old")
    with FolderWriter(folder) as writer:
        writer.log.append(b"third")
        writer.snapshot(**PARTS)
    shutil.copy(tmp_path / "old", folder / LOG)
    for attempt in (read_folder, FolderWriter):
        with pytest.raises(ModelFolderError, match=r"updates.wal: does not belong to the snapshot beside it"):
            attempt(folder)
    assert [finding.file for finding in verify_folder(folder)] == [LOG]


def test_verify_reports_all_damage_at_once_and_none_where_there_is_none(folder):
    assert verify_folder(folder) == []
    for name in (*NAMES, LOG):
        flip(folder / name, 70 if name == LOG else 10)
    findings = verify_folder(folder)
    assert {finding.file for finding in findings} == {*NAMES, LOG}
    assert all(finding.damage and str(folder / finding.file) in finding.problem for finding in findings)


# --- The log


def records(path) -> list[tuple[int, bytes]]:
    with open(path, "rb", buffering=0) as file:
        return [tuple(record) for record in LogReader(file, path)]


def test_a_log_counts_on_across_rotation_and_reopening(tmp_path):
    path = tmp_path / "log"
    with WriteAheadLog(path) as log:
        assert log.last_sequence == 0
        assert log.append(b"a") == 1
        assert log.append_many([b"b", bytearray(b""), memoryview(b"d")]) == range(2, 5)
        assert log.append_many([]) == range(0)
        with pytest.raises(TypeError, match="a log record is bytes, not str"):
            log.append_many([b"e", "text"])
        log.rotate(3)  # in the middle of a commit
        assert (log.base, log.last_sequence) == (3, 4)
        assert log.append(b"e") == 5
        for through in (2, 6):
            with pytest.raises(ValueError, match="cannot drop records"):
                log.rotate(through)
        assert list(log.replay(after=4)) == [(5, b"e")]
    with WriteAheadLog(path) as log:
        assert list(log.replay()) == [(4, b"d"), (5, b"e")]
        log.rotate(5)
        assert (list(log.replay()), log.last_sequence, log.notices) == ([], 5, [])
        assert log.append(b"f") == 6
    with pytest.raises(OSError, match="the log is closed"):
        log.append(b"g")
    assert records(path) == [(6, b"f")]


def small_log(path) -> list[tuple[int, bytes]]:
    with WriteAheadLog(path) as log:
        log.append(b"alpha")
        log.append_many([b"beta", b""])
        log.append(b"gamma" * 5)
    return records(path)


def test_a_log_cut_at_any_byte_is_damaged_and_says_so(tmp_path):
    path = tmp_path / "log"
    small_log(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        for attempt in (records, WriteAheadLog):
            with pytest.raises(LogError, match=f"{path}: "):
                attempt(path)
        assert path.read_bytes() == whole[:size]


def test_every_flipped_byte_of_a_log_is_found_or_harmless(tmp_path):
    path = tmp_path / "log"
    written = small_log(path)
    whole, harmless = path.read_bytes(), []
    for offset in range(len(whole)):
        flip(path, offset, bit=offset % 8)
        with open(path, "rb", buffering=0) as file:
            try:
                reader = LogReader(file, path)
                read = [tuple(record) for record in reader]
            except LogError as error:
                named = str(path) in str(error)
            else:
                named = "commit mark" in reader.notices[0]
                assert read == written
                harmless.append(offset)
        assert named
        flip(path, offset, bit=offset % 8)
    assert path.read_bytes() == whole
    assert harmless == list(range(28, 48))  # the commit mark, which the records do without


def without_mark(log: bytes) -> bytes:
    """The log as a power cut may leave it: the mark that followed the last fsync is gone."""
    return log[:28] + bytes(20) + log[48:]


def test_a_torn_tail_is_dropped_with_a_notice_and_damage_before_it_is_not(tmp_path):
    path = tmp_path / "log"
    small_log(path)
    whole = path.read_bytes()
    last = whole.rindex(b"VGfr")
    for size in range(last + 1, len(whole)):
        path.write_bytes(without_mark(whole)[:size])
        with WriteAheadLog(path) as log:
            assert "record 4" in log.notices[-1]
            assert "not acknowledged" in log.notices[-1]
            assert log.append(b"delta") == 4
        assert records(path)[2:] == [(3, b""), (4, b"delta")]
    path.write_bytes(without_mark(whole))
    for offset in range(48, last):  # a frame that another one follows had been acknowledged
        flip(path, offset)
        with pytest.raises(LogError, match=r"record [12] at offset \d+ is damaged"):
            records(path)
        flip(path, offset)
    path.write_bytes(without_mark(whole[: whole.index(b"VGfr", 49)] + whole[last:]))
    with pytest.raises(LogError, match=r"record 2 at offset \d+: records are missing, .* goes on with 4"):
        records(path)


def test_a_frame_inside_a_payload_is_not_taken_for_one(tmp_path):
    path = tmp_path / "log"
    with WriteAheadLog(path) as log:
        log.append(b"x" + encode_frame([b"mock"], 7, salt=0) * 3 + b"y" * 30)
    torn = without_mark(path.read_bytes())[:-1]
    path.write_bytes(torn)
    assert records(path) == []  # a torn tail, not damage
    # Control: with the salt of this very log it would be.
    salt = int.from_bytes(torn[12:16], "little")
    path.write_bytes(torn.replace(encode_frame([b"mock"], 7, salt=0), encode_frame([b"mock"], 7, salt=salt)))
    with pytest.raises(LogError, match="record 1 at offset 48 is damaged"):
        records(path)


def test_a_newer_log_format_is_recognised(tmp_path):
    path = tmp_path / "log"
    small_log(path)
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"newer valuegraph \(log format 2\), this one reads up to 1"):
        WriteAheadLog(path)


def in_threads(count: int, work) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_share_an_fsync(tmp_path, monkeypatch):
    with WriteAheadLog(tmp_path / "log") as log:
        syncs = []

        def sync_when_all_wait(fd):
            syncs.append(fd)
            deadline = time.monotonic() + 10
            while len(syncs) == 1 and len(log._queue) < 7 and time.monotonic() < deadline:
                time.sleep(0.001)

        with monkeypatch.context() as patch:
            patch.setattr(wal, "sync", sync_when_all_wait)
            in_threads(8, lambda thread: log.append(b"%d" % thread))
        assert len(syncs) == 2  # one append, and the seven that came while it was being synced
        assert sorted(record.payload for record in log.replay()) == [b"%d" % thread for thread in range(8)]


def test_every_record_of_every_thread_arrives_once_and_in_order(tmp_path):
    numbers = [[] for _ in range(6)]
    with WriteAheadLog(tmp_path / "log") as log:

        def work(thread):
            for i in range(15):
                numbers[thread].append(log.append(b"%d %d" % (thread, i)))
                if thread == 0 and i % 5 == 4:
                    log.rotate(0)

        in_threads(6, work)
        written = dict(log.replay())
    assert sorted(written) == list(range(1, 91))
    for thread, mine in enumerate(numbers):
        assert mine == sorted(mine)
        assert [written[number] for number in mine] == [b"%d %d" % (thread, i) for i in range(15)]


def test_control_one_thread_pays_one_fsync_an_append(tmp_path, monkeypatch):
    syncs = []
    with WriteAheadLog(tmp_path / "log") as log:
        monkeypatch.setattr(wal, "sync", syncs.append)
        for _ in range(5):
            log.append(b"")
        assert len(syncs) == 5
        log.append_many([b""] * 50)
        assert len(syncs) == 6


def test_an_append_whose_fsync_fails_fails_for_all_who_waited_and_leaves_no_trace(tmp_path, monkeypatch):
    with WriteAheadLog(tmp_path / "log") as log:
        log.append(b"kept")
        refusals = iter([OSError(errno.EIO, "Input/output error")] * 2)

        def failing_sync(fd, real=wal.sync):
            if refusal := next(refusals, None):
                raise refusal
            real(fd)

        monkeypatch.setattr(wal, "sync", failing_sync)
        with pytest.raises(
            OSError, match=r"1 records not written \(Input/output error\); the log ends with 1"
        ) as caught:
            log.append(b"refused")
        assert caught.value.errno == errno.EIO
        assert caught.value.filename == str(tmp_path / "log")
        # The repair failed too; the next append does it first, or nothing at all.
        assert log.append(b"after") == 2
    assert records(tmp_path / "log") == [(1, b"kept"), (2, b"after")]


def test_a_repair_that_fails_is_made_up_for(tmp_path, monkeypatch):
    path = tmp_path / "log"
    with WriteAheadLog(path) as log:
        log.append(b"kept")
        with monkeypatch.context() as patch:
            for name in ("fdatasync", "fsync", "ftruncate"):
                patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "gone")))
            with pytest.raises(OSError, match="gone"):
                log.append(b"refused" * 100)
            with pytest.raises(OSError, match="gone"):
                log.append(b"refused")
        assert path.stat().st_size > 700  # what was refused is still in the file
        assert list(log.replay()) == [(1, b"kept")]
        assert log.append(b"after") == 2
    with open(path, "rb", buffering=0) as file:
        reader = LogReader(file, path)
        assert (list(reader), reader.notices) == ([(1, b"kept"), (2, b"after")], [])


def test_a_log_that_was_deleted_refuses_instead_of_writing_into_nothing(tmp_path):
    with WriteAheadLog(tmp_path / "log") as log:
        log.append(b"kept")
        (tmp_path / "log").unlink()
        with pytest.raises(OSError, match="deleted or replaced"):
            log.append(b"lost")
        assert log.last_sequence == 1


# --- Snapshot and log together


def test_an_update_counts_once_on_whichever_side_of_the_rotation_a_crash_falls(tmp_path, monkeypatch):
    path = tmp_path / "model"
    with FolderWriter(path) as writer:
        writer.snapshot(**PARTS)
        writer.log.append_many([b"1", b"2", b"3"])
        with monkeypatch.context() as patch:
            patch.setattr(
                WriteAheadLog, "rotate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "crash"))
            )
            with pytest.raises(OSError, match="crash"):
                writer.snapshot(**PARTS, last_sequence=2)
    assert len(records(path / LOG)) == 3
    assert read_folder(path).updates == ((3, b"3"),)
    with FolderWriter(path) as writer:
        writer.snapshot(**PARTS, last_sequence=2)
        assert len(records(path / LOG)) == 1
        assert read_folder(path).updates == ((3, b"3"),)
        for wrong in (1, 4):
            with pytest.raises(ValueError, match=f"cannot end with update {wrong}"):
                writer.snapshot(**PARTS, last_sequence=wrong)


def test_a_committed_snapshot_is_read_before_its_files_have_their_names(folder, monkeypatch):
    parts = PARTS | {"config": {"dim": 9}, "documents": {}}
    with FolderWriter(folder) as writer, monkeypatch.context() as patch:
        replace = os.replace
        calls = []

        def crash_after_commit(source, target):
            calls.append(target)
            if len(calls) > 1:
                raise OSError(errno.EIO, "crash")
            replace(source, target)

        patch.setattr(os, "replace", crash_after_commit)
        with pytest.raises(OSError, match="crash"):
            writer.snapshot(**parts)
    assert json.loads((folder / CONFIG).read_text())["dim"] == 4  # not settled yet
    assert same(read_folder(folder), parts)
    findings = verify_folder(folder)
    assert findings
    assert not any(finding.damage for finding in findings)
    with FolderWriter(folder):
        pass
    assert json.loads((folder / CONFIG).read_text())["dim"] == 9
    assert same(read_folder(folder), parts)
    assert verify_folder(folder) == []
    assert "exemplars.json" not in os.listdir(folder)


def test_an_interrupt_just_after_the_commit_does_not_undo_it(folder, monkeypatch):
    parts = PARTS | {"config": {"dim": 9}}

    def interrupted(source, target, replace=os.replace):
        replace(source, target)
        raise KeyboardInterrupt

    with FolderWriter(folder) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.snapshot(**parts)
        assert same(read_folder(folder), parts)
        assert writer.snapshot_number == 2
        assert writer.log.append(b"more") == 4
        assert writer.snapshot(**PARTS) == 3
    assert same(read_folder(folder))
    assert verify_folder(folder) == []


def test_a_closed_writer_writes_no_more(folder):
    writer = FolderWriter(folder)
    writer.close()
    with pytest.raises(ValueError, match="this writer is closed"):
        writer.snapshot(**PARTS)
    with pytest.raises(OSError, match="the log is closed"):
        writer.log.append(b"")


# --- The lock

HOLD = """
from valuegraph.persistence import FolderWriter
writer = FolderWriter({path!r})
writer.log.append(b"from the other process")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_writes_until_that_one_dies(folder):
    with python(HOLD.format(path=str(folder)), stdin=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == "ready\n"
        message = rf"{folder}: is being written by process {holder.pid} on .+ since 20\d\d-"
        for attempt in (FolderWriter, lambda path: write_folder(path, **PARTS)):
            with pytest.raises(FolderBusyError, match=message):
                attempt(folder)
        assert read_folder(folder).updates[-1].payload == b"from the other process"  # readers need no lock
        os.kill(holder.pid, signal.SIGKILL)
    with FolderWriter(folder) as writer:
        assert writer.log.last_sequence == 4
    assert LOCK not in os.listdir(folder)


def test_a_second_writer_in_the_same_process_is_told_so(tmp_path):
    with (
        WriterLock(tmp_path),
        pytest.raises(FolderBusyError, match=f"process {os.getpid()} \\(this very process\\)"),
    ):
        WriterLock(tmp_path)
    lock = WriterLock(tmp_path)
    del lock  # a lock that nobody has any more is not held
    WriterLock(tmp_path).release()


def test_one_of_many_gets_the_lock_at_any_time(tmp_path):
    code = f"""
from valuegraph.durable import FolderBusyError, WriterLock
from pathlib import Path
counter, taken = Path({str(tmp_path / "counter")!r}), 0
while taken < 100:
    try:
        with WriterLock({str(tmp_path)!r}):
            counter.write_text(str(int(counter.read_text()) + 1))
            taken += 1
    except FolderBusyError:
        pass
"""
    (tmp_path / "counter").write_text("0")
    contenders = [python(code) for _ in range(3)]
    assert [contender.wait(60) for contender in contenders] == [0, 0, 0]
    for contender in contenders:
        contender.stdout.close()
    assert (tmp_path / "counter").read_text() == "300"


def test_a_fork_inherits_neither_the_lock_nor_the_log(folder):
    code = f"""
import os, signal, time
from valuegraph.persistence import FolderWriter
writer = FolderWriter({str(folder)!r})
child = os.fork()
if child == 0:
    for refused in (lambda: writer.log.append(b""), lambda: writer.snapshot(config={{}})):
        try:
            refused()
            print("not refused")
        except (OSError, ValueError) as error:
            print(error)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
time.sleep(60)
"""
    with python(code, stdin=subprocess.PIPE) as parent:
        lines = [parent.stdout.readline() for _ in range(3)]
        assert "this is its fork" in lines[0]
        assert "was opened before a fork" in lines[1]
        with pytest.raises(FolderBusyError):
            FolderWriter(folder)
        os.kill(parent.pid, signal.SIGKILL)
        os.waitpid(parent.pid, 0)
        FolderWriter(folder).close()  # though the child lives on
        parent.returncode = -9
    assert read_folder(folder).updates[-1].payload == b"second" * 20


# --- A full disk


def fill_and_recover(path: Path, make_room) -> None:
    """Write until there is no room, find all that was acknowledged, make room, and go on."""
    writer = FolderWriter(path)
    writer.snapshot(**PARTS)
    acknowledged, refusal = 0, None
    while refusal is None and acknowledged < 10_000:
        try:
            writer.log.append(b"%06d" % acknowledged * 3000)
            acknowledged += 1
        except OSError as error:
            refusal = error
    assert refusal is not None
    assert refusal.errno in (errno.ENOSPC, errno.EFBIG)
    assert f"1 records not written ({os.strerror(refusal.errno)})" in str(refusal)
    assert acknowledged > 2
    with pytest.raises(OSError, match=r"snapshot not written .* all that was saved before is still there"):
        writer.snapshot(**PARTS | {"blobs": {"index.faiss": bytes(10_000_000)}})
    for _ in range(2):
        read = read_folder(path)
        assert same(read)
        assert [record.payload for record in read.updates] == [
            b"%06d" % i * 3000 for i in range(acknowledged)
        ]
        assert verify_folder(path) == []
        writer.close()
        writer = FolderWriter(path)  # after reopening as before it
    make_room()
    assert writer.log.append(b"there is room again") == acknowledged + 1
    assert writer.snapshot(**PARTS) == 2
    writer.close()
    assert same(read_folder(path))
    assert verify_folder(path) == []


def test_a_full_disk_loses_nothing(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", mount], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root; the next test limits the file size instead")
    try:
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(150_000))
        fill_and_recover(mount / "model", ballast.unlink)
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_limit_on_file_size_loses_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        fill_and_recover(tmp_path / "model", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- The long way down: see the scripts


def test_forty_kills_lose_nothing():
    report = harness("kill_loop.py", "--kills", "40", "--longest", "0.25")
    assert report["kills"] == 40
    assert report["acknowledged"] > 0
    assert report["during"].keys() - {"opening"}
    assert report["reads beside the writer"] > 0


def test_dying_at_any_call_loses_nothing():
    report = harness("crash_points.py", "die", "--stride", "2")
    assert report["deaths at"].keys() >= {"open", "write", "fdatasync", "replace"}


def test_failing_at_any_call_loses_nothing():
    assert harness("crash_points.py", "fail", "--stride", "7")["refusals"] > 40


def test_a_power_cut_after_any_call_loses_nothing():
    assert harness("power_cut.py", "--cuts", "1")["losses"] == 0


def test_control_a_power_cut_hurts_those_who_do_not_sync():
    assert harness("power_cut.py", "--cuts", "1", "--careless")["losses"] > 0
