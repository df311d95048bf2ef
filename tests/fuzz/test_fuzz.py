"""A slice of `make fuzz`, and every crash that it found, kept as a case of its own."""

from __future__ import annotations

import time
import zlib
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING

import pytest

from cluster.records import RecordError, decode_record, encode_record
from kvstore.cli.bulk import Remembered
from kvstore.client.outcomes import entry_of
from kvstore.errors import BadRequest
from kvstore.http.keys import expiry_text
from kvstore.http.problems import ProblemError
from kvstore.http.targets import Query
from kvstore.json_values import load_json
from kvstore.storage.datadir import DataDirError, _parsed
from tests.fuzz import doors
from tests.fuzz.examples import RECORDS, VERSION
from tests.fuzz.fuzz import Found, run_block
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INPUTS = 250


@pytest.fixture(autouse=True)
def doors_closed() -> Iterator[None]:
    """The nodes behind the doors are stopped."""
    yield
    doors.close()


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_is_a_crash(target: str) -> None:
    found = Found(target)
    run_block(found, target, INPUTS, seed=0, block=0)
    assert found.faults == []


def test_a_seed_makes_the_same_inputs_again() -> None:
    def inputs() -> list[bytes]:
        mutator = Mutator(Random(5))
        return [mutator.packed([1, {"a": b"b"}, "text"]) for _ in range(200)]

    assert inputs() == inputs()
    assert len(set(inputs())) > 100


def with_checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "size", range(26, len(RECORDS[1]) - 5), ids=lambda size: f"{size} bytes are left"
)
def test_a_record_that_was_cut_off_before_its_checksum_was_made(size: int) -> None:
    with pytest.raises(RecordError, match="cut off"):
        decode_record(with_checksum(RECORDS[1][4:size]))


def test_a_content_type_that_is_no_text() -> None:
    body = bytearray(RECORDS[1][4:])
    body[22 + 8 + 1] = 0xFF
    with pytest.raises(RecordError, match="content type"):
        decode_record(with_checksum(bytes(body)))


def test_an_expiry_beyond_the_calendar() -> None:
    """By a primary whose clock is ten thousand years ahead."""
    entry = entry_of(encode_record(VERSION, b"\xc0", "", 2**63), "k")
    assert entry.expires_at == datetime.max.replace(tzinfo=UTC)
    assert expiry_text(2**63).startswith("9999-12-31T")


def test_a_number_beside_a_space_that_only_texts_know() -> None:
    assert Query("by=%1C5", ["by"]).integer("by", 1, least=0, most=9) == 5
    with pytest.raises(ProblemError, match="whole number"):
        Query("by=5%1C5", ["by"]).integer("by", 1, least=0, most=9)


@pytest.mark.parametrize("text", ['{"job": {"size": 1}}', "[]", '{"job": {"size": 1}, "place": 5}'])
def test_a_progress_file_without_its_place(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.progress"
    file.write_text(text)
    assert Remembered(file, {"size": 1}).recall() is None


def test_small_files_that_are_nested_too_deep(tmp_path: Path) -> None:
    file = tmp_path / "IDENTITY"
    file.write_text("[" * 100_000)
    assert Remembered(file, {}).recall() is None
    with pytest.raises(DataDirError, match="cannot be understood"):
        _parsed(file)


def test_a_name_that_occurs_twice_among_many_is_found_in_one_walk() -> None:
    """It was looked for name by name: minutes on the event loop for a body within the limits."""
    names = ",".join(f'"{n}":1' for n in range(50_000))
    begin = time.process_time()
    with pytest.raises(BadRequest, match="'z' occurs twice"):
        load_json(f'{{{names},"z":1,"z":2}}'.encode())
    assert time.process_time() - begin < 5
