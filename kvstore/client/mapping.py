"""A prefix of the store as a dict: `collections.abc.MutableMapping` over the blocking client.

Keys are text and lose the prefix. Every access asks the cluster, nothing is cached: length and
iteration are scans, and `update` is one `put_many`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kvstore.client.sync import Client

_PAGE_KEYS: Final = 1_000


class KeyMapping(MutableMapping[str, Any]):
    """Made by `Client.mapping`.

    Args:
        client: Serves every access; its errors pass through, an absent key is a `KeyError`.
        prefix: Put before every key.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prefix={self._prefix!r})"

    def __getitem__(self, key: str) -> Any:
        entry = self._client.get_entry(self._prefix + key)
        if entry is None:
            raise KeyError(key)
        return entry.value

    def __setitem__(self, key: str, value: Any) -> None:
        self._client.put(self._prefix + key, value)

    def __delitem__(self, key: str) -> None:
        if not self._client.delete(self._prefix + key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._client.get_entry(self._prefix + key) is not None

    def __iter__(self) -> Iterator[str]:
        for key in self._keys():
            if isinstance(key, str) and len(key) > len(self._prefix):
                yield key[len(self._prefix) :]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Store all pairs in one `Client.put_many`."""
        pairs: Iterable[tuple[str, Any]]
        pairs = other.items() if isinstance(other, Mapping) else other
        items = {self._prefix + key: value for key, value in pairs}
        items |= {self._prefix + key: value for key, value in more.items()}
        self._client.put_many(items)

    def clear(self) -> None:
        """Remove all keys of the prefix that are there now."""
        self._client.delete_many(self._prefix + key for key in self)

    def _keys(self) -> Iterator[str | bytes]:
        cursor: str | None = None
        while True:
            page = self._client.scan_page(
                self._prefix, limit=_PAGE_KEYS, cursor=cursor, values=False
            )
            yield from page.keys
            cursor = page.cursor
            if cursor is None:
                return
