"""Files of many keys: JSON lines, CSV and MessagePack, read row by row and written row by row.

One entry is the same everywhere: ``key``, ``value``, and where they apply ``expires_at`` and
``content_type``.

=========  ==============================================================================
``jsonl``  one JSON object a line, with the conventions of `kvstore.json_values`
``csv``    a head, then rows; a column ``value`` is text, a column ``json`` is JSON
``msgpack``  one map after another
=========  ==============================================================================

Rows of other programs need no conversion: with a *key field* the key is taken from that field and
the value is the whole row. A row that cannot be read is handed out as `BadRow` with its number, and
reading goes on behind it, but not in MessagePack, where nothing says where the next one begins.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgpack

from cluster.limits import VALUE_BYTES_MAX
from kvstore.errors import BadRequest
from kvstore.json_values import dump_json, load_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvstore.client import Entry

ROW_BYTES_MAX: Final = 8 * VALUE_BYTES_MAX
"""A longer line is no row: a JSON text takes up to six bytes for one, and some room for the key."""
SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".msgpack": "msgpack",
    ".mp": "msgpack",
}
FORMATS: Final = ("jsonl", "csv", "msgpack")
CSV_COLUMNS: Final = ("key", "json", "expires_at", "content_type")


class Row(NamedTuple):
    """One entry of a file; ``number`` is its line (MessagePack: its place), from 1."""

    number: int
    key: str | bytes
    value: Any
    expires_at: datetime | None = None
    content_type: str = ""


class BadRow(NamedTuple):
    """A row that was left out, and why."""

    number: int
    reason: str


class Shape(NamedTuple):
    """Where a row's key is: in ``key_field`` (None: the row is an entry), behind ``prefix``."""

    key_field: str | None = None
    prefix: str = ""


def read_rows(form: str, file: IO[bytes], shape: Shape) -> Iterator[Row | BadRow]:
    """The rows of a file in one of `FORMATS`."""
    return _READERS[form](file, shape)


def _read_jsonl(file: IO[bytes], shape: Shape) -> Iterator[Row | BadRow]:
    for number, line in _lines(file):
        if line is None:
            yield BadRow(number, _TOO_LONG)
        elif line.strip():
            try:
                yield _row(number, load_json(line.rstrip(b"\r\n")), shape)
            except BadRequest as error:
                yield BadRow(number, str(error))


def _read_csv(file: IO[bytes], shape: Shape) -> Iterator[Row | BadRow]:
    """Quoted fields may hold line ends; a row's number is that of its first line."""
    csv.field_size_limit(ROW_BYTES_MAX)
    lines = _TextLines(file)
    reader = csv.reader(lines, strict=True)
    head: list[str] | None = None
    while True:
        number = lines.number + 1
        try:
            fields = next(reader)
        except StopIteration:
            yield from lines.take_bad()
            return
        except csv.Error as error:
            yield BadRow(number, f"no CSV: {error}")
            reader = csv.reader(lines, strict=True)
            continue
        yield from lines.take_bad()
        if head is None:
            head = fields
            if len(set(head)) < len(head):
                raise BadRequest(f"the head names a column twice: {', '.join(head)}")
        elif fields:
            yield _csv_row(number, head, fields, shape)


def _csv_row(number: int, head: list[str], fields: list[str], shape: Shape) -> Row | BadRow:
    if len(fields) != len(head):
        return BadRow(number, f"has {len(fields)} fields, the head names {len(head)}")
    row: dict[str, Any] = dict(zip(head, fields, strict=True))
    try:
        if shape.key_field is None:
            if "json" in row:
                row["value"] = load_json(row.pop("json").encode())
            row = {name: value for name, value in row.items() if value != "" or name == "value"}
        return _row(number, row, shape)
    except BadRequest as error:
        return BadRow(number, str(error))


def _read_msgpack(file: IO[bytes], shape: Shape) -> Iterator[Row | BadRow]:
    unpacker = msgpack.Unpacker(
        file, raw=False, timestamp=3, strict_map_key=False, max_buffer_size=ROW_BYTES_MAX
    )
    number = 0
    while True:
        number += 1
        try:
            row = next(unpacker)
        except StopIteration:
            if unpacker.tell() < file.tell():
                yield BadRow(number, "the file ends within an entry")
            return
        except Exception as error:  # the unpacker raises a dozen kinds
            yield BadRow(number, f"no MessagePack from here on: {type(error).__name__}: {error}")
            return
        try:
            yield _row(number, row, shape)
        except BadRequest as error:
            yield BadRow(number, str(error))


_READERS: Final[dict[str, Callable[[IO[bytes], Shape], Iterator[Row | BadRow]]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "msgpack": _read_msgpack,
}
assert tuple(_READERS) == FORMATS
_TOO_LONG: Final = f"the line is longer than {ROW_BYTES_MAX:,} bytes"


def _row(number: int, row: Any, shape: Shape) -> Row:
    """A row from a decoded object.

    Raises:
        BadRequest: it lacks what an entry needs; the message says what.
    """
    if not isinstance(row, dict):
        raise BadRequest(f"an object is needed, this is a {type(row).__name__}")
    if shape.key_field is not None:
        if shape.key_field not in row:
            raise BadRequest(f"there is no field {shape.key_field!r}")
        name = row[shape.key_field]
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise BadRequest(f"the field {shape.key_field!r} is no text and no whole number")
        return Row(number, f"{shape.prefix}{name}", row)
    if "key" not in row or "value" not in row:
        missing = "key" if "key" not in row else "value"
        raise BadRequest(f"there is no {missing!r}; for rows of another form name --key FIELD")
    key = row["key"]
    if not isinstance(key, str | bytes):
        raise BadRequest(f"the key is text or bytes, not {key!r:.40}")
    if shape.prefix:
        key = shape.prefix + key if isinstance(key, str) else shape.prefix.encode() + key
    content_type = row.get("content_type", "")
    if not isinstance(content_type, str):
        raise BadRequest(f"the content type is no text: {content_type!r:.40}")
    return Row(number, key, row["value"], _moment(row.get("expires_at")), content_type)


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise BadRequest(f"expires_at is no moment in RFC 3339: {value!r:.40}") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for one that is too long, whose rest is skipped."""
    number = 0
    while line := file.readline(ROW_BYTES_MAX):
        number += 1
        if len(line) < ROW_BYTES_MAX or line.endswith(b"\n"):
            yield number, line
            continue
        while (rest := file.readline(ROW_BYTES_MAX)) and not rest.endswith(b"\n"):
            pass
        yield number, None


class _TextLines:
    """The lines of a file as text for `csv`; those that are none are set aside."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines = _lines(file)
        self._bad: list[BadRow] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for number, line in self._lines:
            self.number = number
            if line is None:
                self._bad.append(BadRow(number, _TOO_LONG))
                continue
            try:
                return line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                self._bad.append(BadRow(number, f"is no UTF-8: byte {error.start} is wrong"))
        raise StopIteration

    def take_bad(self) -> list[BadRow]:
        """What was set aside since the last call."""
        bad, self._bad = self._bad, []
        return bad


class Writer(Protocol):
    """Turns entries into a file's bytes."""

    def head(self) -> bytes:
        """What the file begins with."""

    def entry(self, key: str | bytes, entry: Entry) -> bytes:
        """One entry.

        Raises:
            BadRequest: this form cannot hold it.
        """


class _JsonlWriter:
    def head(self) -> bytes:
        return b""

    def entry(self, key: str | bytes, entry: Entry) -> bytes:
        return dump_json(entry_object(key, entry)) + b"\n"


class _CsvWriter:
    def head(self) -> bytes:
        return (",".join(CSV_COLUMNS) + "\n").encode()

    def entry(self, key: str | bytes, entry: Entry) -> bytes:
        if not isinstance(key, str):
            raise BadRequest(f"the key {key!r:.60} is no text: CSV cannot hold it, use jsonl")
        expires = "" if entry.expires_at is None else entry.expires_at.isoformat()
        line = io.StringIO()
        fields = (key, dump_json(entry.value).decode(), expires, entry.content_type)
        csv.writer(line, lineterminator="\n").writerow(fields)
        return line.getvalue().encode()


class _MsgpackWriter:
    def head(self) -> bytes:
        return b""

    def entry(self, key: str | bytes, entry: Entry) -> bytes:
        packed: bytes = msgpack.packb(entry_object(key, entry), datetime=True)
        return packed


def writer(form: str) -> Writer:
    """The writer of one of `FORMATS`."""
    made: Writer
    match form:
        case "jsonl":
            made = _JsonlWriter()
        case "csv":
            made = _CsvWriter()
        case _:
            made = _MsgpackWriter()
    return made


def entry_object(key: str | bytes, entry: Entry) -> dict[str, Any]:
    """An entry as files have it; what is empty is left out."""
    row: dict[str, Any] = {"key": key, "value": entry.value}
    if entry.expires_at is not None:
        row["expires_at"] = entry.expires_at.isoformat()
    if entry.content_type:
        row["content_type"] = entry.content_type
    return row


def format_of(path: str, named: str | None) -> str:
    """The form that was named, else that of the file's name.

    Raises:
        BadRequest: neither says one.
    """
    if named is not None:
        return named
    if path == "-":
        return FORMATS[0]
    found = next((form for suffix, form in SUFFIXES.items() if path.endswith(suffix)), None)
    if found is None:
        raise BadRequest(f"the name {path} says no form: add --format {'|'.join(FORMATS)}")
    return found
