"""Outcomes of a trace's answers by a verifier, for searches that ran without one. No torch."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from server.errors import PonderError
from server.reward.tools import Tools
from server.reward.verifiers import AnyVerifier, VerifierJudge
from server.types import Prompt
from trainer.errors import DataError
from trainer.node import Node
from trainer.tree import Tree


class Grader:
    """Asks `verifier` about finished answers. Owns an event loop and the verifier's processes."""

    def __init__(self, verifier: AnyVerifier):
        self.verifier = verifier
        self._tools = Tools()
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._runner.run(self._tools.close())
        self._runner.__exit__(kind, error, at)

    def outcomes(self, tree: Tree) -> dict[int, float | None]:
        """By node. Raises `DataError` if the verifier fails."""
        prompt = Prompt(tree.messages, tree.trace.prompt_ids)
        judge = VerifierJudge(self.verifier, self._tools, tree.profile.answer.pattern)
        try:
            found = self._runner.run(verdicts(judge, prompt, tree))
        except PonderError as error:
            raise DataError(f"{tree.where}: {self.verifier.kind}: {error.message}") from error
        return {end.id: verdict for end, verdict in found.items()}


async def verdicts(judge: VerifierJudge, prompt: Prompt, tree: Tree) -> dict[Node, float | None]:
    """On each answer that was finished; one that ran out of tokens is wrong."""
    return {e: await judge.verdict(prompt, e.text()) if e.ended else 0.0 for e in tree.ends}
