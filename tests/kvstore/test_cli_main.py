"""The command `kvstore` as a whole: its list, its errors, and what `serve` makes of its options."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import kvstore.log
import kvstore.process
from kvstore.cli.main import main
from kvstore.cli.output import ExitStatus, describe
from kvstore.client.core import Unsettled
from kvstore.client.outcomes import error_of
from kvstore.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvstore.settings import NodeSettings

    Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `kvstore` in this process: its status, and stdout and stderr together."""
    for variable in [name for name in os.environ if name.startswith("KVSTORE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("KVSTORE_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["kvstore", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        captured = capsys.readouterr()
        return ended.value.code, captured.out + captured.err

    return run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[NodeSettings]:
    """The settings of the nodes that `serve` would have run; none is."""
    nodes: list[NodeSettings] = []

    def run_node(settings: NodeSettings) -> int:
        nodes.append(settings)
        return 0

    monkeypatch.setattr(kvstore.process, "run_node", run_node)
    monkeypatch.setattr(kvstore.log, "configure_logging", lambda level, form: None)
    return nodes


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )


def test_help_lists_the_commands_without_importing_them() -> None:
    code = """
import contextlib, sys
from kvstore.cli.main import main
sys.argv = ["kvstore", "--help"]
with contextlib.suppress(SystemExit):
    main()
heavy = {"aiohttp", "rocksdict", "kvstore.client", "kvstore.node"} & set(sys.modules)
print("imported:", *sorted(heavy), file=sys.stderr)
"""
    ended = python(code)
    for command in ("serve", "up", "put", "get", "scan", "load", "status", "members", "doctor"):
        assert f"\n  {command} " in ended.stdout
    assert ended.stderr == "imported:\n"


def test_the_module_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "kvstore", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ended.stdout.startswith("kvstore, version ")


def test_a_misspelt_command_is_answered_with_the_nearest(run: Run) -> None:
    status, text = run("serv")
    assert status == ExitStatus.USAGE
    assert "Did you mean 'serve'?" in text
    status, text = run("xylophone")
    assert status == ExitStatus.USAGE
    assert "xylophone" in text
    assert "Did you mean" not in text


def test_a_configuration_that_is_not_toml_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[serve\n")
    status, text = run("--config", str(path), "serve")
    assert status != ExitStatus.OK
    assert f"{path} is not TOML" in text


def test_serve_does_not_listen_beyond_loopback_unasked(
    run: Run, started: list[NodeSettings]
) -> None:
    status, text = run("serve", "--host", "0.0.0.0")
    assert status == ExitStatus.USAGE
    assert text.startswith("kvstore: flag --host: 0.0.0.0 ")
    assert "--insecure" in text
    assert not started


def test_serve_as_a_process_exits_with_the_same_status_and_message() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "kvstore", "serve", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == ExitStatus.USAGE
    assert ended.stdout == ""
    assert ended.stderr.startswith("kvstore: flag --host: 0.0.0.0 ")
    assert "Traceback" not in ended.stderr


def test_serve_reads_flags_environment_file_and_configuration(
    run: Run, started: list[NodeSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(
        'url = "kv://db1"\ntimeout = 3\n'
        '[serve]\nname = "c"\nzone = "c"\ncluster = "c"\nport = 7500\nsettings_file = "node.toml"\n'
    )
    (tmp_path / "node.toml").write_text('name = "f"\nzone = "f"\ncluster = "f"\nhttp_port = 8500\n')
    monkeypatch.setenv("KVSTORE_NAME", "e")
    monkeypatch.setenv("KVSTORE_ZONE", "e")
    status, text = run("serve", "--name", "n1", "--founders", "127.0.0.1:7500,127.0.0.1:7501")
    assert (status, text) == (0, "")
    (settings,) = started
    assert (settings.name, settings.zone, settings.cluster) == ("n1", "e", "f")
    assert (settings.port, settings.http_port) == (7500, 8500)
    assert settings.founders == ("127.0.0.1:7500", "127.0.0.1:7501")
    assert not settings.insecure


def test_serve_finds_its_settings_file_by_the_environment(
    run: Run, started: list[NodeSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "node.toml").write_text("weight = 2.5")
    monkeypatch.setenv("KVSTORE_SETTINGS_FILE", "node.toml")
    assert run("serve", "--insecure")[0] == 0
    assert started[0].weight == 2.5
    assert started[0].insecure


def test_the_status_of_the_node_is_the_status_of_the_command(
    run: Run, started: list[NodeSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvstore.process, "run_node", lambda settings: 74)
    assert run("serve")[0] == 74

    def taken(settings: NodeSettings) -> int:
        raise SetupError("port 7401 is taken: choose another with --port")

    monkeypatch.setattr(kvstore.process, "run_node", taken)
    assert run("serve") == (
        ExitStatus.USAGE,
        "kvstore: port 7401 is taken: choose another with --port\n",
    )


def test_an_unknown_outcome_names_the_option_that_settles_it() -> None:
    error = error_of(Unsettled("ab-1-cd", "n1 did not answer"), "incr of 'k'")
    assert describe(error).count("ab-1-cd") == 1
    assert "repeat it with --operation-id ab-1-cd to settle it" in describe(error)


def logged(form: str) -> list[str]:
    code = f"""
import logging
from kvstore.log import configure_logging, get_logger
configure_logging("info", {form!r})
log = get_logger("kvstore.node")
log.debug("hidden")
log.info("listening", port=7401, zone="a b")
logging.getLogger("aiohttp.access").info("hidden")
logging.getLogger("aiohttp.server").warning("odd %s", "request")
secret = "a user's value"
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""
    ended = python(code)
    assert ended.stdout == ""
    assert "hidden" not in ended.stderr
    assert "a user's value" not in ended.stderr
    return ended.stderr.splitlines()


@pytest.mark.parametrize("form", ["json", "auto"])
def test_a_log_that_no_person_reads_is_an_object_a_line(form: str) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in logged(form)]
    assert [line["event"] for line in lines] == ["listening", "odd request", "failed"]
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert (lines[0]["port"], lines[0]["zone"]) == (7401, "a b")
    assert "ZeroDivisionError" in lines[2]["exception"]


def test_a_log_in_text_has_no_colours_off_a_terminal() -> None:
    lines = logged("text")
    assert "listening" in lines[0]
    assert "port=7401 zone='a b'" in lines[0]
    assert not any("\x1b" in line for line in lines)
