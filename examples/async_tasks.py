"""Many tasks on one asyncio client: their calls travel together, frame by frame."""

from __future__ import annotations

import asyncio

import kvstore


async def visit(db: kvstore.AsyncClient, page: str) -> None:
    """One visitor."""
    await db.incr(f"visits:{page}")


async def main(url: str | None = None) -> None:
    """A thousand visitors at once."""
    async with kvstore.connect_async(url) as db:
        await db.delete_many([f"visits:{n}" for n in range(10)])
        await asyncio.gather(*(visit(db, str(n % 10)) for n in range(1_000)))
        visits = await db.get_many([f"visits:{n}" for n in range(10)])
        print(visits)
        assert sum(visits.values()) == 1_000


if __name__ == "__main__":
    asyncio.run(main())
