"""Operators: what the policy is given to go on from, other than its own words so far.

An operator stands for a reasoning behaviour (arXiv 2412.14135, section 3.3). It may put words in
the policy's mouth (the next step begins with them, as in s1's "Wait", arXiv 2501.19393), or let
the user ask for something (a new turn of the chat, as in Self-Refine, arXiv 2303.17651).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.types import Behaviour, Engine, Message, Node, Operator, Prompt, Step, Stop, Tokenizer

Action = Behaviour | Literal["continue"]


@dataclass(frozen=True, slots=True)
class Opening:
    """How a continuation of a node begins."""

    operator: Operator
    prompt: Prompt | None = None  # what the policy reads, if that is not the path
    said: tuple[int, ...] = ()  # the operator's words
    greedy: bool = False  # at temperature 0

    def ids(self, node: Node) -> tuple[int, ...]:
        """What the policy reads before the operator's words, to go on from `node`."""
        return policy_ids(node) if self.prompt is None else self.prompt.ids

    def spoken(self, engine: Engine) -> Step | None:
        """The operator's words as the beginning of a step."""
        if not self.said:
            return None
        n = len(self.said)
        return Step(self.operator.say, self.said, (), Stop.STEP, engine.version, n, forced=n)

    def behaviour(self, parent: Node) -> str | None:
        """Of a child of `parent`: what goes on plainly goes on with the same turn."""
        plain = self.operator == Operator() and self.prompt is None
        return parent.behaviour if plain else self.operator.behaviour

    def mark(self, node: Node) -> None:
        """Say on `node`, the first that was written so, how it was."""
        assert node.parent is not None
        node.prompt = self.prompt
        node.behaviour = self.behaviour(node.parent)
        node.fresh, node.greedy = self.operator.fresh, self.greedy
        node.aside = self.operator.aside if self.operator.ask else node.parent.aside


PLAIN = Opening(Operator())


def opening(node: Node, operator: Operator, tokenizer: Tokenizer) -> Opening:
    """How `operator` lets the policy go on from `node`."""
    said = tokenizer.say(operator.say) if operator.say else ()
    over = node.step is not None and node.step.stop is Stop.END
    if operator.ask:
        messages = asked(conversation(node, forget=operator.forget), operator.ask)
        return Opening(operator, Prompt(messages, tokenizer.render(messages)), said)
    if over:  # its turn has ended: the end token is taken back
        return Opening(operator, Prompt(chat(node), without_end(node, tokenizer)), said)
    if operator == Operator():
        return PLAIN
    return Opening(operator, None, said)


def conversation(node: Node, *, forget: bool = False) -> tuple[Message, ...]:
    """The chat up to `node`, what the policy has written so far being its last message.

    `forget` leaves out what came before the attempt that `node` belongs to.
    """
    written: list[str] = []
    at = node
    while at.step is not None:
        written.append(at.step.text)
        assert at.parent is not None
        if at.prompt is not None and at.prompt.messages != chat(at.parent):
            break  # the first of its turn
        at = at.parent
    before = _since_attempt(at) if forget else chat(at)
    return (*before, Message("assistant", "".join(reversed(written)))) if written else before


def _since_attempt(first: Node) -> tuple[Message, ...]:
    """The question, and the turns from the last attempt on, up to the one that `first` begins."""
    if first.step is None or first.fresh:
        while first.parent is not None:
            first = first.parent
        return chat(first)
    assert first.parent is not None
    return asked(conversation(first.parent, forget=True), chat(first)[-1].content)


def chat(node: Node) -> tuple[Message, ...]:
    """What the turn that `node` is part of answers to."""
    while node.prompt is None:
        assert node.parent is not None
        node = node.parent
    return node.prompt.messages


def asked(messages: tuple[Message, ...], ask: str) -> tuple[Message, ...]:
    """The chat with a request at its end: in a user's turn of its own, if it is not theirs."""
    if messages[-1].role == "user":
        return (*messages[:-1], Message("user", f"{messages[-1].content}\n\n{ask}"))
    return (*messages, Message("user", ask))


def spent(node: Node, begin: Operator) -> Sequence[Node]:
    """What counts against the allowance of what may be written from `node` on: a new answer has
    its own, and so has what is said of an answer that has ended."""
    if begin.fresh or (begin.ask and begin.aside and node.ended):
        return ()
    said, at = list[Node](), node
    while not begin.ask and at.aside and at.step is not None and at.parent is not None:
        said.append(at)
        at = at.parent
    return said if said and at.ended else node.path()


def without_end(node: Node, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the policy has read and written up to `node`, less the control tokens at its end."""
    ids = policy_ids(node)
    end = len(ids)
    while end and not tokenizer.piece(ids[end - 1]):
        end -= 1
    return ids[:end]


def policy_ids(node: Node) -> tuple[int, ...]:
    """Exactly what the policy sees when it continues `node`."""
    parts: list[tuple[int, ...]] = []
    at: Node | None = node
    while at is not None:
        if at.step is not None:
            parts.append(at.step.token_ids)
        if at.prompt is not None:
            parts.append(at.prompt.ids)
            break
        at = at.parent
    return tuple(i for part in reversed(parts) for i in part)
