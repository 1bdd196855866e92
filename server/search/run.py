"""A search from its beginning to its end, in time and within its budget."""

from __future__ import annotations

import asyncio

from server.budget import BudgetSpent
from server.errors import unwrap
from server.search.core import Runs, Search
from server.types import Stop


async def run_search(strategy: Runs, search: Search, *, finishing: float = 0.2) -> None:
    """Run to the strategy's end, the budget's end or the deadline.

    If by then no path is finished, the best open one is written to its end with the tokens
    (`Budget.reserve`) and the share `finishing` of the time held back for that. Raises what an
    engine or scorer raised.
    """
    loop, seconds = asyncio.get_running_loop(), search.budget.seconds
    wrap_up = None
    if seconds is not None:
        wrap_up = loop.call_later(seconds * (1 - finishing), _wrap_up, search)
    try:
        async with asyncio.timeout(seconds):
            await search.stage(strategy)
            if not search.tree.answered:
                await _finish(search)
    except (TimeoutError, BudgetSpent):
        pass  # the best so far is in the tree
    except BaseExceptionGroup as group:
        raise unwrap(group) from None
    finally:
        if wrap_up is not None:
            wrap_up.cancel()
        await search.writer.close()


def _wrap_up(search: Search) -> None:
    """At the soft deadline: without an answer yet, the rest of the time is for one.

    A path that is written alone just goes on.
    """
    if not search.tree.answered and search.writer.writing != 1:
        search.cut = Stop.STEP
        search.halt()


async def _finish(search: Search) -> None:
    """Write the best open path to its end with the tokens held back for that.

    One that was given up only if no truncated path, which nothing can follow, says what its
    answer is: that was found good, the other would be an answer that nobody has scored.
    """
    search.cut = Stop.LENGTH
    search.writer.last_resort = True
    search.budget.reserve = 0
    leaf = search.tree.best_open()
    if leaf is not None and not (leaf.pruned and _answered_short(search)):
        await search.grow(leaf, until=Stop.END, score=False, operator=search.plain(leaf))


def _answered_short(search: Search) -> bool:
    """Whether some truncated path holds an answer that the profile's pattern finds."""
    cut = (n for n in search.nodes if n.finished and not n.ended)
    return search.answer.pattern is not None and any(search.key(n) is not None for n in cut)
