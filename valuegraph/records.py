"""Files as records, each with its place: JSON, CSV, Parquet and Arrow in; whole files, or none, out.

A record is what one line, item or row says, as plain Python values; its place (`"runs.jsonl, line 3"`) opens
every error.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PathLike = str | os.PathLike[str]
Located = tuple[str, Any]
"""(place, record)"""

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".arrow")


class EpisodeError(ValueError):
    """Input that is not a valid episode; the message names the file, the line, the episode and the field."""


class KnownEpisodeError(EpisodeError):
    """An episode that is already remembered: whoever sends it again need not."""


def counted(number: int, things: str) -> str:
    """A number in words.

    >>> counted(1, "goals"), counted(1, "memories"), counted(1_000, "goals")
    ('1 goal', '1 memory', '1,000 goals')
    """
    if number == 1:
        things = f"{things[:-3]}y" if things.endswith("ies") else things.removesuffix("s")
    return f"{number:,} {things}"


def iter_records(path: PathLike) -> Iterator[Located]:
    """Yield (place, record) for each record of a file, row by row (a `.json` file is read whole).

    Raises `EpisodeError` for an unknown suffix and for what cannot be read.
    """
    path = Path(path)
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    readers = {"jsonl": _json_lines, "json": _json_items, "csv": _csv_rows}
    reader = (readers | {"parquet": _parquet_rows, "arrow": _arrow_rows}).get(suffix)
    if reader is None:
        raise EpisodeError(f"{path}: not a kind of file that is read here: {', '.join(SUFFIXES)}")
    place = str(path)
    try:
        for place, record in reader(path):
            yield place, record
    except (OSError, EOFError, zlib.error) as error:
        after = f" after {place.removeprefix(f'{path}, ')}" if place != str(path) else ""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EpisodeError(f"{path}: cannot be read{after}: {reason}") from None


@contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once complete and on disk; an error changes nothing."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, path)
        if os.name == "posix":  # the new name is durable only once its folder is
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise EpisodeError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # where nothing may be written, nothing can be there to remove
            draft.unlink(missing_ok=True)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _json_lines(path: Path) -> Iterator[Located]:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}, line {number}"
            if line.strip():
                hint = "; .jsonl holds a record a line, .json may spread one over several"
                yield place, _parse(line.rstrip(b" \t\r\n"), place, hint)


def _json_items(path: Path) -> Iterator[Located]:
    with _open(path) as file:
        value = _parse(file.read(), str(path))
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"{path}, item {number}", record


def _parse(data: bytes, place: str, hint: str = "") -> Any:
    """What the JSON says; `hint` is for text that ends before it does."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.pos == len(error.doc):
            raise EpisodeError(f"{place}: not valid JSON: it ends too early{hint}") from None
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise EpisodeError(f"{place}: not valid JSON: {error.msg}, at {at}") from None
    except (ValueError, RecursionError) as error:
        raise EpisodeError(f"{place}: not valid JSON: {error}") from None


# CSV knows text only. What people and policies wrote stays text, so that nothing a policy put into its
# completion is taken for a conversation; a cell of any other column is a number or a boolean where it looks
# like one.
_CSV_TEXT = {"episode_id", "goal", "action", "prompt", "completion", "chosen", "rejected"}
_CSV_BOOL = {"True", "False", "TRUE", "FALSE"}  # as Python and as spreadsheets write them
_CSV_JSON = {"observation", "messages", "conversations", "steps", "metadata"}


def _csv_rows(path: Path) -> Iterator[Located]:
    with _open(path) as raw:
        rows = csv.reader(_csv_lines(path, raw), strict=True)
        try:
            header = next(rows, [])
            for row in rows:
                place = f"{path}, line {rows.line_num}"
                if row and len(row) != len(header):
                    raise EpisodeError(
                        f"{place}: {counted(len(row), 'cells')}, but the header names "
                        f"{counted(len(header), 'columns')}"
                    )
                if row:
                    yield place, {name: _cell(name, text) for name, text in zip(header, row, strict=True)}
        except csv.Error as error:
            raise EpisodeError(f"{path}, line {rows.line_num}: not valid CSV: {error}") from None


def _csv_lines(path: Path, raw: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(raw, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise EpisodeError(f"{path}, line {number}: not valid CSV: {error}") from None


def _cell(name: str, text: str) -> Any:
    if not text:  # an environment or a policy may say nothing; any other empty cell is no value
        return "" if name in ("observation", "completion") else None
    if name in _CSV_TEXT:
        return text
    try:
        value = json.loads(text.lower() if text in _CSV_BOOL else text)
    except (ValueError, RecursionError):
        return text
    if name == "observation":
        return value if isinstance(value, list) else text
    return value if name in _CSV_JSON or isinstance(value, bool | int | float) else text


def _parquet_rows(path: Path) -> Iterator[Located]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as table:
            yield from _rows(path, table.iter_batches(batch_size=1024))
    except ArrowException as error:
        raise EpisodeError(f"{path}: not valid Parquet: {error}") from None


def _arrow_rows(path: Path) -> Iterator[Located]:
    from pyarrow import ArrowException, ipc, memory_map

    try:
        with memory_map(str(path)) as file, ipc.open_stream(file) as table:
            yield from _rows(path, table)
    except ArrowException as error:
        raise EpisodeError(f"{path}: not an Arrow stream: {error}") from None


def _rows(path: Path, batches: Iterable[Any]) -> Iterator[Located]:
    number = 0
    for batch in batches:
        for number, record in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
            yield f"{path}, row {number}", record
