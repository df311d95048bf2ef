"""Settings: which source wins, and that every slip is answered with its place and its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.limits import (
    ADDRESS_BYTES_MAX,
    REPLICAS_DEFAULT,
    REPLICAS_MAX,
    SLOT_COUNT_DEFAULT,
    SLOT_COUNT_MAX,
)
from cluster.scrub import BYTES_PER_S_DEFAULT
from kvstore.errors import SetupError
from kvstore.settings import NodeSettings, load_settings
from kvstore.sizes import CACHE_BYTES_DEFAULT, DISK_RESERVE_BYTES_DEFAULT
from kvstore.storage import rocksdb


def load(
    flags: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    toml: Path | None = None,
    **configured: Any,
) -> NodeSettings:
    return load_settings(flags or {}, environ or {}, toml, configured=configured)


def refusal(**flags: Any) -> str:
    with pytest.raises(SetupError) as caught:
        load(flags)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text("")
    return path


def test_without_anything_it_is_a_node_of_its_own_on_loopback() -> None:
    settings = load()
    assert settings == NodeSettings(
        name="node-7401",
        host="127.0.0.1",
        port=7401,
        http_host="127.0.0.1",
        http_port=8401,
        advertised_address="127.0.0.1:7401",
        advertised_http_address="127.0.0.1:8401",
        data_dir=Path("kvdata"),
        cluster="ringkv",
        founders=(),
        join=(),
        replace="",
        zone="",
        weight=1.0,
        replicas=REPLICAS_DEFAULT,
        slot_count=SLOT_COUNT_DEFAULT,
        durability="disk",
        engine="rocksdb",
        cache_bytes=CACHE_BYTES_DEFAULT,
        disk_reserve_bytes=DISK_RESERVE_BYTES_DEFAULT,
        scrub_bytes_per_s=BYTES_PER_S_DEFAULT,
        insecure=False,
        log_level="info",
        log_format="auto",
    )


def test_the_default_cache_is_the_engine_s_own() -> None:
    assert CACHE_BYTES_DEFAULT == rocksdb.CACHE_BYTES_DEFAULT


def test_flags_beat_environment_beats_file_beats_configuration(toml: Path) -> None:
    toml.write_text('name = "file"\nzone = "file"\ncluster = "file"\n')
    settings = load(
        {"name": "flag", "zone": None},
        {"KVSTORE_NAME": "environment", "KVSTORE_ZONE": "environment"},
        toml,
        name="configuration",
        zone="configuration",
        cluster="configuration",
        port=7500,
    )
    found = (settings.name, settings.zone, settings.cluster, settings.port)
    assert found == ("flag", "environment", "file", 7500)


def test_one_value_is_read_the_same_from_everywhere(toml: Path) -> None:
    toml.write_text(
        "\n".join(
            [
                'name = "a"',
                "port = 7500",
                "weight = 2",
                'founders = ["127.0.0.1:7500", "127.0.0.1:7501"]',
                "insecure = true",
                'cache_bytes = "64MiB"',
                'data_dir = "/srv/a"',
            ]
        )
    )
    texts = {
        "name": "a",
        "port": "7500",
        "weight": "2",
        "founders": "127.0.0.1:7500, 127.0.0.1:7501",
        "insecure": "true",
        "cache_bytes": str(64 << 20),
        "data_dir": "/srv/a",
    }
    from_file = load(toml=toml)
    assert from_file.founders == ("127.0.0.1:7500", "127.0.0.1:7501")
    assert from_file.insecure
    assert from_file.cache_bytes == 64 << 20
    assert load(texts) == from_file
    assert load(environ={f"KVSTORE_{name.upper()}": text for name, text in texts.items()}) == (
        from_file
    )


def test_other_variables_of_the_environment_are_left_alone() -> None:
    others = ("KVSTORE_URL", "KVSTORE_TOKEN", "KVSTORE_CONFIG", "KVSTORE_TIMEOUT", "PATH", "PORT")
    assert load(environ=dict.fromkeys(others, "7")) == load()


def test_an_empty_variable_counts_as_not_set(toml: Path) -> None:
    toml.write_text("port = 7500")
    assert load(environ={"KVSTORE_PORT": ""}, toml=toml).port == 7500


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("name", "", "1 to 64 bytes"),
        ("name", "a b", "without spaces"),
        ("name", "tab\there", "printable"),
        ("name", "ä" * 33, "1 to 64 bytes"),
        ("cluster", "", "1 to 64 bytes"),
        ("zone", "z" * 65, "1 to 64 bytes"),
        ("host", "", "IP address"),
        ("host", "[::1]", "no brackets"),
        ("host", "fe80::1%eth0", "no interface"),
        ("host", "127.1", "IP address"),
        ("host", "0", "IP address"),
        ("http_host", "a b", "host name"),
        ("port", 0, "from 1 to 65535"),
        ("port", "65536", "from 1 to 65535"),
        ("port", "tcp://10.0.0.1:7401", "from 1 to 65535"),
        ("port", True, "from 1 to 65535"),
        ("port", 7401.0, "from 1 to 65535"),
        ("http_port", "٣", "from 1 to 65535"),
        ("advertised_address", "db1", "host:port"),
        ("advertised_address", "::1:7401", "IPv6 needs brackets"),
        ("advertised_address", "db1:0", "from 1 to 65535"),
        ("advertised_http_address", "0.0.0.0:8401", "others can call"),
        ("data_dir", "", "a directory"),
        ("founders", "127.0.0.1:7401,", "host:port"),
        ("founders", "127.0.0.1:7401,127.0.0.1:7401", "once"),
        ("founders", 7401, "list of addresses"),
        ("weight", "heavy", "0.001 to 1000"),
        ("weight", "nan", "0.001 to 1000"),
        ("weight", 0, "0.001 to 1000"),
        ("replicas", REPLICAS_MAX + 1, f"from 1 to {REPLICAS_MAX}"),
        ("slot_count", 1000, "power of two"),
        ("slot_count", SLOT_COUNT_MAX * 2, f"from 1 to {SLOT_COUNT_MAX}"),
        ("durability", "never", "disk, os"),
        ("engine", "lmdb", "rocksdb, memory"),
        ("cache_bytes", "64MB", "KiB, MiB or GiB"),
        ("cache_bytes", "1", "from 8MiB"),
        ("disk_reserve_bytes", "-1", "from 0 to 1024GiB"),
        ("scrub_bytes_per_s", "2GiB", "from 0 to 1GiB a second"),
        ("insecure", "maybe", "true or false"),
        ("log_level", "loud", "debug, info, warning, error"),
        ("log_format", "xml", "auto, text, json"),
    ],
)
def test_a_bad_value_is_refused_with_its_place_and_what_is_allowed(
    name: str, value: object, allowed: str
) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"flag --{name.replace('_', '-')}: {value!r} is not allowed: ")
    assert allowed in message


def test_the_place_is_named_in_every_source(toml: Path) -> None:
    with pytest.raises(SetupError, match=r"^environment KVSTORE_PORT: '0' is not allowed"):
        load(environ={"KVSTORE_PORT": "0"})
    toml.write_text("port = 0")
    with pytest.raises(SetupError, match=r"^port in file .*node\.toml: 0 is not allowed"):
        load(toml=toml)
    with pytest.raises(SetupError, match=r"^port in \[serve\] of the configuration file: 0 is"):
        load(port=0)


def test_an_unknown_name_in_the_file_is_refused(toml: Path) -> None:
    toml.write_text("prot = 7500")
    with pytest.raises(SetupError, match=r"node\.toml: there is no setting 'prot'; did you mean"):
        load(toml=toml)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("KVSTORE_PROT", "did you mean KVSTORE_PORT?"),
        ("KVSTORE_TOKE", "did you mean KVSTORE_TOKEN?"),
        ("KVSTORE_SIZE", "known are KVSTORE_NAME, KVSTORE_HOST, "),
        ("KVSTORE_", "known are"),
    ],
)
def test_an_unknown_variable_is_refused(variable: str, hint: str) -> None:
    with pytest.raises(SetupError) as caught:
        load(environ={variable: "secret-7500"})
    assert variable in str(caught.value)
    assert hint in str(caught.value)
    assert "secret" not in str(caught.value)


def test_variables_are_in_capitals() -> None:
    with pytest.raises(SetupError, match="KVSTORE_port: there is no such setting"):
        load(environ={"KVSTORE_port": "7500"})


def test_a_table_in_the_file_is_no_setting(toml: Path) -> None:
    toml.write_text('[serve]\nname = "a"')
    with pytest.raises(SetupError, match="there is no setting 'serve'"):
        load(toml=toml)


@pytest.mark.parametrize("content", [b"port = ", b"\xff", b"port = " + b"9" * 5_000])
def test_a_file_that_is_not_toml_is_named(toml: Path, content: bytes) -> None:
    toml.write_bytes(content)
    with pytest.raises(SetupError, match=r"node\.toml is not TOML"):
        load(toml=toml)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot read .*gone\.toml: No such file"):
        load(toml=tmp_path / "gone.toml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    settings = load({"host": host})
    assert settings.http_host == settings.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "db1", "localhost.example"])
@pytest.mark.parametrize("name", ["host", "http_host"])
def test_listening_beyond_loopback_needs_insecure(name: str, host: str) -> None:
    message = refusal(**{name: host})
    assert message.startswith(f"flag --{name.replace('_', '-')}: {host} ")
    assert "--insecure" in message
    assert "authentication does not exist yet" in message
    allowed = {
        name: host,
        "insecure": True,
        "advertised_address": "db1:7401",
        "advertised_http_address": "db1:8401",
    }
    assert load(allowed).insecure


def test_insecure_can_be_taken_back_by_a_better_source() -> None:
    with pytest.raises(SetupError, match="--insecure"):
        load({"insecure": False, "host": "10.0.0.1"}, {"KVSTORE_INSECURE": "yes"})


def test_everywhere_is_no_address_to_advertise() -> None:
    assert "--advertised-address HOST:PORT" in refusal(host="0.0.0.0", insecure=True)
    message = refusal(http_host="0.0.0.0", insecure=True)
    assert "--advertised-http-address HOST:PORT" in message


def test_listening_everywhere_http_is_advertised_under_the_name_that_was_given() -> None:
    settings = load({"host": "::", "insecure": True, "advertised_address": "[2001:DB8::0]:7000"})
    assert settings.advertised_address == "[2001:db8::]:7000"
    assert settings.advertised_http_address == "[2001:db8::]:8401"


def test_addresses_follow_host_and_port_in_one_form() -> None:
    settings = load({"host": "0:0::1", "port": "07500", "http_host": "LOCALHOST"})
    assert settings.name == "node-7500"
    assert settings.advertised_address == "[::1]:7500"
    assert settings.advertised_http_address == "localhost:8401"


def test_two_doors_cannot_share_a_port() -> None:
    assert "--http-port are both 8401" in refusal(port=8401)


def test_founders_contain_this_node() -> None:
    message = refusal(founders="127.0.0.1:7402,127.0.0.1:7403", port=7401)
    assert message.startswith("flag --founders: ")
    assert "127.0.0.1:7401" in message
    settings = load({"founders": "[0::1]:7401,DB2:7401", "host": "::1"})
    assert settings.founders == ("[::1]:7401", "db2:7401")


LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
HOST_NAMES = (
    st.tuples(st.lists(LABELS, max_size=3), st.from_regex(r"[a-z]{1,61}", fullmatch=True))
    .map(lambda labels: ".".join([*labels[0], labels[1]]))
    .filter(lambda name: len(name) <= 253)
)


@given(
    host=st.one_of(st.ip_addresses().map(str), HOST_NAMES),
    port=st.integers(1, 65_535),
)
def test_any_host_is_reached_under_what_it_advertises(host: str, port: int) -> None:
    if host in ("0.0.0.0", "::"):
        return
    settings = load({"host": host, "port": port, "http_port": port % 65_535 + 1, "insecure": True})
    advertised = settings.advertised_address
    assert len(advertised) <= ADDRESS_BYTES_MAX
    assert load({"advertised_address": advertised}).advertised_address == advertised
    name, _, text = advertised.rpartition(":")
    assert (name.strip("[]"), int(text)) == (settings.host, port)


@given(st.sampled_from(NodeSettings.__struct_fields__), st.text())
def test_any_text_is_taken_or_refused_in_words(name: str, text: str) -> None:
    try:
        load({name: text})
    except SetupError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()
