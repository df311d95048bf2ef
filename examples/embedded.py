"""The same store inside one process: no server, the same calls, durable when they return."""

from __future__ import annotations

import sys
import tempfile

import kvstore


def main(directory: str) -> None:
    """Remember how often this ran."""
    with kvstore.open(directory) as db:
        runs = db.incr("runs")
        db.put(f"run:{runs}", {"arguments": sys.argv[1:]})
        print("run", runs, "of", len(db.mapping("run:")))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
            main(temporary)
