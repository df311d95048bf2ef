from __future__ import annotations

import re
from pathlib import Path

from cluster import limits

NAME = re.compile(
    r"[A-Z_]+_(BYTES|MS|ITEMS|DEPTH|OPERATIONS|HOPS|WRITES|KEYS|IN_FLIGHT|ENTRIES|COUNT|REPLICAS|NODES"
    r"|WEIGHT|VOTERS|SECONDS)_(MIN|MAX|DEFAULT)|(REPLICAS|NODES)_(MAX|DEFAULT)|NODE_ID_BITS"
)


def public() -> dict[str, object]:
    return {
        name: value for name, value in vars(limits).items() if name.isupper() and name[0] != "_"
    }


def test_every_limit_is_a_positive_number_with_its_unit_in_the_name() -> None:
    for name, value in public().items():
        assert isinstance(value, int | float), name
        assert value > 0, name
        assert NAME.fullmatch(name), name


def test_every_limit_says_why() -> None:
    source = Path(limits.__file__).read_text()
    for name in public():
        assert re.search(rf'^{name} = .*\n"""', source, re.MULTILINE), name


def test_what_users_were_promised() -> None:
    assert limits.KEY_BYTES_MAX == 4_096
    assert limits.VALUE_BYTES_MAX == 1024 * 1024
    assert limits.SLOT_COUNT_DEFAULT == 16_384
    assert limits.REPLICAS_DEFAULT == 3
    assert limits.KEY_LOG_ENTRIES_MAX == 256
