"""A level of a lockstep search: steps taken at once that are decided about together."""

from __future__ import annotations

from collections.abc import Sequence

from server.search.core import Search
from server.search.strategy import Convincible
from server.types import Node


async def grow_all(
    search: Search, parents: Sequence[Node], strategy: Convincible
) -> list[Node | None]:
    """One child of each of `parents` (which may repeat), in their order, when all have landed;
    None where the budget did not suffice. An answer that convinces `strategy` ends the search."""

    async def one(parent: Node) -> Node:
        node = await search.grow(parent)
        strategy.ends(search, node)
        return node

    tasks = [search.spawn(one(parent)) for parent in parents]
    return [await task for task in tasks]
