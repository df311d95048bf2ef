"""The blocking client in five minutes; needs a cluster (`make run`)."""

from __future__ import annotations

import kvstore


def main(url: str | None = None) -> None:
    """Store, read, count, compare and set, list."""
    with kvstore.connect(url) as db:
        version = db.put("tour:berlin", {"name": "Berlin", "population": 3_426_354})
        print("put", version)
        print("get", db.get("tour:berlin"))

        # A write on condition: nobody changed it in between.
        entry = db.get_entry("tour:berlin")
        assert entry is not None
        db.put("tour:berlin", {**entry.value, "country": "DE"}, if_version=entry.version)
        try:
            db.put("tour:berlin", {}, if_version=entry.version)
        except kvstore.VersionConflict as conflict:
            print("somebody was faster:", conflict.current)

        # Counts each call once, however often the network made the client try.
        print("visits", db.incr("tour:visits"))

        # Many keys: one frame a node, durable when it returns.
        db.put_many({f"tour:n:{n}": n * n for n in range(100)})
        print("some", db.get_many(["tour:n:3", "tour:n:4", "tour:n:none"]))
        print("all", sum(value for _, value in db.scan("tour:n:")))

        # All or nothing, for keys that share a {tag}.
        db.batch({"tour:{cart}:total": 9, "tour:{cart}:items": 2})

        squares = db.mapping("tour:n:")
        squares["100"] = 100 * 100
        print(len(squares), "squares")


if __name__ == "__main__":
    main()
