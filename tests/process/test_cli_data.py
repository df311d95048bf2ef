"""The commands for data against real nodes: what they print, their statuses, files of many keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from kvstore.cli import bulk, data
from kvstore.cli.dump import dump
from kvstore.cli.load import load
from kvstore.cli.output import status_of
from kvstore.errors import KVError, Unavailable
from tests.process.cluster_processes import command

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from kvstore.cli.local_cluster import LocalCluster
    from kvstore.client import Client


class Answer:
    """What a command printed, and its exit status."""

    def __init__(self, out: bytes, err: str, status: int) -> None:
        self.raw, self.err, self.status = out, err, status

    @property
    def out(self) -> str:
        return self.raw.decode()


class Shell:
    """Runs commands in this process, which is fast; `command` runs them as a user does."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, program: click.Command, *arguments: str, stdin: bytes = b"") -> Answer:
        result = CliRunner().invoke(
            program, ["--url", self.url, *arguments], input=stdin, standalone_mode=False
        )
        error = result.exception
        if isinstance(error, KVError):
            return Answer(result.stdout_bytes, f"{result.stderr}{error}", status_of(error))
        if error is not None:
            raise error
        status = result.return_value
        return Answer(result.stdout_bytes, result.stderr, status if status is not None else 0)


@pytest.fixture
def sh(cluster: LocalCluster) -> Shell:
    return Shell(cluster.url)


def test_what_is_put_comes_back(sh: Shell) -> None:
    version = sh(data.put, "d:text", "hello").out.strip()
    assert sh(data.get, "d:text").out == "hello\n"
    entry = json.loads(sh(data.get, "d:text", "--entry").out)
    assert entry == {"key": "d:text", "value": "hello", "version": version}


def test_a_file_and_stdin_are_raw_bytes(sh: Shell, tmp_path: Path) -> None:
    content = bytes(range(256))
    (tmp_path / "value").write_bytes(content)
    sh(data.put, "d:file", f"@{tmp_path / 'value'}", "--content-type", "image/x-test")
    sh(data.put, "d:stdin", "-", stdin=content)
    assert sh(data.get, "d:file").raw == sh(data.get, "d:stdin").raw == content
    assert json.loads(sh(data.get, "d:file", "--entry").out)["content_type"] == "image/x-test"


def test_json_keeps_types(sh: Shell, db: Client) -> None:
    sh(data.put, "d:json", '{"a": [1, 2.5, null], "b": {"$bytes": "AAE="}}', "--json")
    assert db.get("d:json") == {"a": [1, 2.5, None], "b": b"\x00\x01"}
    assert sh(data.get, "d:json").out == '{"a":[1,2.5,null],"b":{"$bytes":"AAE="}}\n'


def test_statuses_tell_what_happened(sh: Shell) -> None:
    assert sh(data.get, "d:none").status == 1
    assert sh(data.delete, "d:none").status == 1
    sh(data.put, "d:there", "1")
    assert sh(data.put, "d:there", "2", "--if-absent").status == 5
    refused = sh(data.incr, "d:there")
    assert refused.status == 2
    assert "put --json" in refused.err
    assert sh(data.put, "", "x").status == 2
    assert sh(data.delete, "d:there", "d:none").out == "1\n"
    nobody = CliRunner().invoke(
        data.get, ["--url", "kv://127.0.0.1:9", "--timeout", "0.2", "k"], standalone_mode=False
    )
    assert isinstance(nobody.exception, Unavailable)


def test_incr_counts_down_too(sh: Shell) -> None:
    assert sh(data.incr, "d:n").out == "1\n"
    assert sh(data.incr, "d:n", "--by", "-5").out == "-4\n"


def test_touch_sets_and_removes_a_time_to_live(sh: Shell, db: Client) -> None:
    sh(data.put, "d:t", "x", "--ttl", "3600")
    entry = db.get_entry("d:t")
    assert entry is not None
    assert entry.expires_at is not None
    assert sh(data.touch, "d:t").status == 0
    assert '"expires_at"' not in sh(data.get, "d:t", "--entry").out
    assert sh(data.touch, "d:t", "--ttl", "60").status == 0
    assert '"expires_at"' in sh(data.get, "d:t", "--entry").out
    assert sh(data.get, "d:t").out == "x\n"
    assert sh(data.touch, "d:none").status == 1


def test_scan_in_its_forms(sh: Shell, db: Client) -> None:
    db.put_many({f"s:{n}": {"n": n} for n in range(30)})
    names = sh(data.scan, "s:", "-o", "name").out.split()
    assert sorted(names) == sorted(f"s:{n}" for n in range(30))
    assert len(sh(data.scan, "s:", "--limit", "7", "-o", "name").out.split()) == 7
    lines = sh(data.scan, "s:", "-o", "json").out.splitlines()
    assert {line["key"]: line["value"]["n"] for line in map(json.loads, lines)} == {
        f"s:{n}": n for n in range(30)
    }
    table = sh(data.scan, "s:1").out.splitlines()
    assert table[0].split() == ["KEY", "VALUE"]
    assert len(table) == 12
    db.put("s:long", "x" * 200)
    head, row = sh(data.scan, "s:long", "-o", "wide").out.splitlines()
    entry = db.get_entry("s:long")
    assert entry is not None
    assert head.split() == ["KEY", "VERSION", "VALUE"]
    assert row.split() == ["s:long", entry.version, "x" * 200]


def test_keys_that_are_no_text(sh: Shell, db: Client) -> None:
    db.put(b"raw:\xff", 1)
    assert sh(data.scan, "raw:", "-o", "name").raw == b"raw:\xff\n"
    assert sh(data.get, "raw:\udcff").out == "1\n"


@pytest.mark.parametrize("form", ["jsonl", "csv", "msgpack"])
def test_dump_and_load_lose_nothing(form: str, sh: Shell, db: Client, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "text": 'quotes " and\nlines, and commas',
        "bytes": b"\x00\xff",
        "map": {"a": [1, -2.5, None, True], "när": datetime(2026, 1, 2, tzinfo=UTC)},
        "empty": "",
    }
    db.put_many({f"f:{form}:{name}": value for name, value in values.items()})
    db.put(f"f:{form}:typed", b"{}", content_type="application/json")
    db.put(f"f:{form}:short", "lived", ttl=1_000)
    before = {key: db.get_entry(key) for key, _ in db.scan(f"f:{form}:")}
    path = str(tmp_path / f"all.{form}")
    assert sh(dump, path, "--prefix", f"f:{form}:").status == 0
    db.delete_many(before)
    assert sh(load, path).status == 0
    after = {key: db.get_entry(key) for key, _ in db.scan(f"f:{form}:")}
    assert after.keys() == before.keys()
    for key, entry in before.items():
        found = after[key]
        assert entry is not None
        assert found is not None
        assert (found.value, found.content_type) == (entry.value, entry.content_type)
        assert (found.expires_at is None) == (entry.expires_at is None)
        if entry.expires_at is not None and found.expires_at is not None:
            assert abs((found.expires_at - entry.expires_at).total_seconds()) < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"all.{form}"]


def test_bad_json_lines_are_named_and_left_out(sh: Shell, db: Client, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b'{"key": "b:1", "value": 1}\n'
        b"{oops\n"
        b'{"key": "", "value": 1}\n'
        b'{"key": "b:\xff", "value": 1}\n'
        b"\n"
        b"[1, 2]\n"
        b'{"key": "b:7"}\n'
        b'{"key": "b:8", "value": ' + b'"' + b"x" * 1_100_000 + b'"}\n'
        b'{"key": "b:9", "value": 1e999}\n'
        b'{"key": "b:10", "value": 10}\n'
    )
    answer = sh(load, str(path))
    assert answer.status == 2
    reported = {int(line.split()[1][:-1]) for line in answer.err.splitlines() if "line " in line}
    assert reported == {2, 3, 4, 6, 7, 8, 9}
    assert "7 rows were left out" in answer.err
    assert dict(db.scan("b:")) == {"b:1": 1, "b:10": 10}


def test_bad_csv_rows_are_named_and_left_out(sh: Shell, db: Client, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b"\xef\xbb\xbfkey,value\r\n"
        b"c:1,one\r\n"
        b"c:2\r\n"
        b"c:3,\xff\r\n"
        b'"c:4","two\r\nlines"\r\n'
        b",nameless\r\n"
        b"c:8,eight,many\r\n"
        b"c:9,nine\r\n"
        b'c:10,"never closed\r\n'
    )
    answer = sh(load, str(path))
    assert answer.status == 2
    reported = {int(line.split()[1][:-1]) for line in answer.err.splitlines() if "line " in line}
    assert reported == {3, 4, 7, 8, 10}
    assert dict(db.scan("c:")) == {"c:1": "one", "c:4": "two\r\nlines", "c:9": "nine"}


def test_a_broken_msgpack_file_is_loaded_up_to_the_break(
    sh: Shell, db: Client, tmp_path: Path
) -> None:
    path = tmp_path / "whole.msgpack"
    db.put_many({"m:1": 1, "m:2": 2})
    sh(dump, str(path), "--prefix", "m:")
    broken = tmp_path / "broken.msgpack"
    broken.write_bytes(path.read_bytes()[:-3])
    answer = sh(load, str(broken), "--prefix", "again:")
    assert answer.status == 2
    assert "entry 2: the file ends within an entry" in answer.err
    assert len(list(db.scan("again:m:"))) == 1


def test_rows_of_other_programs(sh: Shell, db: Client) -> None:
    sh(load, "-", "--format", "csv", "--key", "id", "--prefix", "p:", stdin=b"id,name\n1,ann\n")
    assert db.get("p:1") == {"id": "1", "name": "ann"}
    answer = sh(load, "-", stdin=b'{"id": 1, "name": "ann"}\n')
    assert "there is no 'key'; for rows of another form name --key FIELD" in answer.err


def test_an_interrupted_load_goes_on_where_it_stopped(
    sh: Shell, db: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.jsonl"
    rows = [json.dumps({"key": f"i:{n}", "value": n}) for n in range(5_000)]
    path.write_text("\n".join(rows))
    stored: list[int] = []
    real = bulk.store_rows

    def failing(client: Client, batch: list[Any]) -> list[Any]:
        if len(stored) == 3:
            raise Unavailable("the network is away")
        stored.append(len(batch))
        return real(client, batch)

    monkeypatch.setattr("kvstore.cli.load.store_rows", failing)
    answer = sh(load, str(path))
    assert answer.status == 3
    done = f"{sum(stored):,} rows"
    assert f"{done} are done; the same command goes on from there" in answer.err
    db.delete("i:5")
    monkeypatch.setattr("kvstore.cli.load.store_rows", real)
    answer = sh(load, str(path))
    assert (answer.status, f"behind the {done}" in answer.err) == (0, True)
    assert db.get("i:5") is None  # was not loaded twice
    assert len(list(db.scan("i:"))) == 4_999
    assert not path.with_name("many.jsonl.progress").exists()


def test_an_interrupted_dump_goes_on_where_it_stopped(
    sh: Shell, db: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.put_many({f"o:{n}": n for n in range(3_000)})
    path = tmp_path / "all.jsonl"
    real = kvstore_scan_page = type(db).scan_page
    pages: list[int] = []

    def failing(self: Client, *args: Any, **kwargs: Any) -> Any:
        pages.append(1)
        if len(pages) == 3:
            raise Unavailable("the network is away")
        return kvstore_scan_page(self, *args, **kwargs)

    monkeypatch.setattr(type(db), "scan_page", failing)
    assert sh(dump, str(path), "--prefix", "o:").status == 3
    assert not path.exists()
    monkeypatch.setattr(type(db), "scan_page", real)
    answer = sh(dump, str(path), "--prefix", "o:")
    assert "going on behind the" in answer.err
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert sorted(keys) == sorted(f"o:{n}" for n in range(3_000))
    assert sh(dump, str(path), "--prefix", "o:").status == 2  # it exists


def test_as_a_user_runs_it(cluster: LocalCluster) -> None:
    put = command("put", "u:1", "--json", url=cluster.url, stdin=b"[1, 2]")
    assert (put.returncode, put.stderr) == (0, "")
    assert command("get", "u:1", url=cluster.url).stdout == "[1,2]\n"
    gone = command("get", "u:none", url=cluster.url)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr == "kvstore: there is no key 'u:none'\n"
    conflict = command("put", "u:1", "x", "--if-absent", url=cluster.url)
    assert (conflict.returncode, conflict.stderr[:8]) == (5, "kvstore:")
    assert command("put", "u:1", "x", "--ttl", "-1", url=cluster.url).returncode == 2
    assert command("gte", "u:1", url=cluster.url).returncode == 2
    away = command("get", "k", "--timeout", "0.3", url="kv://127.0.0.1:9")
    assert (away.returncode, "127.0.0.1:9" in away.stderr) == (3, True)
