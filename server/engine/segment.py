"""Cuts a stream of tokens into steps, at about one dict look-up a token.

A step ends with the token in which one of these falls, the first that applies:

1. an end id (eos or a stop token): `Stop.END`; ids include it, text does not;
2. the end of one of the caller's stop strings: `Stop.END`; text is cut before the string, ids go
   through the token that completes it. Where the string began in an earlier step, this step's
   text is empty, for what was handed out cannot be taken back;
3. the end of a delimiter with something other than white space before it in its step: `Stop.STEP`.
   So a run of newlines makes no empty steps: what follows the first "\\n\\n" in its own token ends
   the old step, and further newlines open the next one;
4. the step's token limit: `Stop.STEP`. It moves no delimiter: where those fall depends on the
   text alone, so a branch forked at a step is cut as the stream it left would have been.

Text is the UTF-8 of the tokens' bytes, decoded once a step. A character whose bytes are split over
two steps belongs to the second.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence

from server.types import Step, Stop


class State:
    """What the text so far may still become, and the transitions met from here."""

    __slots__ = ("content", "next", "partial", "tail")

    def __init__(self, partial: bytes, content: bool, tail: bytes):
        self.partial = partial  # the delimiter's beginning that the text ends with
        self.content = content  # whether the step has more than white space before `partial`
        self.tail = tail  # the longest beginning of a stop string that the text ends with
        self.next: dict[int, tuple[State, Stop | None, int]] = {}


class Patterns:
    """The automaton of one delimiter and one set of stop strings; shared by any streams.

    `piece` gives a token's bytes, b"" for a control token. A transition is the next state, what
    the token ends (None, `STEP` or `END`), and how many of the text's last bytes a stop string
    takes away.
    """

    def __init__(
        self,
        piece: Callable[[int], bytes],
        delimiter: str,
        stop: Sequence[str] = (),
        end_ids: Collection[int] = (),
        memo: int = 1 << 20,  # transitions remembered at once, some 200 bytes each
    ):
        assert all(stop), "an empty stop string is everywhere"
        self.piece = piece
        self.delimiter = delimiter.encode()
        self.stop = tuple(s.encode() for s in stop)
        self.end_ids = frozenset(end_ids)
        self.memo = memo
        self.reach = max((len(s) for s in (self.delimiter, *self.stop)), default=0)  # bytes
        self._forget()

    def after(self, ids: Sequence[int]) -> State:
        """The state after an answer's ids (its last `reach` bytes and some words are enough)."""
        state = self.start
        for i in ids:
            state = (state.next.get(i) or self.step(state, i))[0]
        return state

    def step(self, state: State, token: int) -> tuple[State, Stop | None, int]:
        """Work out a transition that is not remembered yet, and remember it."""
        if self._size >= self.memo:
            self._forget()
        self._size += 1
        piece = self.piece(token)
        partial, content, boundary = self._delimit(state, piece)
        tail, cut = self._stopped(state.tail + piece)
        key = (partial, content, tail)
        after = self._states.setdefault(key, State(*key))
        stop = Stop.STEP if boundary else None
        if token in self.end_ids:
            stop, cut = Stop.END, len(piece)
        elif cut:
            stop = Stop.END
        state.next[token] = entry = (after, stop, cut)
        return entry

    def _forget(self) -> None:
        self.start = State(b"", False, b"")
        self._states = {(b"", False, b""): self.start}
        self._size = 0

    def _delimit(self, state: State, piece: bytes) -> tuple[bytes, bool, bool]:
        """The delimiter's new partial match, the content flag, and whether the step ends."""
        text, content = state.partial + piece, state.content
        if not self.delimiter:
            return b"", content, False
        while (at := text.find(self.delimiter)) >= 0:
            if content or text[:at].strip():
                return b"", False, True
            content = bool(self.delimiter.strip())
            text = text[at + len(self.delimiter) :]
        partial = overlap(text, self.delimiter)
        rest = text[: len(text) - len(partial)]
        return partial, content or bool(rest.strip()), False

    def _stopped(self, text: bytes) -> tuple[bytes, int]:
        """The new partial match of a stop string, and the bytes from the first one's start on."""
        starts = [at for s in self.stop if (at := text.find(s)) >= 0]
        if starts:
            return b"", len(text) - min(starts)
        return max((overlap(text, s) for s in self.stop), key=len, default=b""), 0


def overlap(text: bytes, pattern: bytes) -> bytes:
    """The longest proper beginning of `pattern` that `text` ends with."""
    longest = min(len(text), len(pattern) - 1)
    return next((pattern[:n] for n in range(longest, 0, -1) if text.endswith(pattern[:n])), b"")


class Segmenter:
    """One stream being cut. `before` are the ids of the answer that it continues, or their tail
    (`context` ids are enough); `version` names the weights and may change on the way."""

    context = 64

    def __init__(
        self,
        patterns: Patterns,
        *,
        max_step_tokens: int,
        version: str,
        before: Sequence[int] = (),
        begun: int = 0,  # tokens at the end of `before` that belong to the first step
    ):
        self.version = version
        self.ended = False  # an END step was cut; what is fed after it is ignored
        self._patterns = patterns
        self._limit = max_step_tokens
        self._begun = begun
        self._state = patterns.after(before)
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._tops: list[tuple[float, ...]] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf8.decode(b"".join(map(patterns.piece, before[-4:])))

    @property
    def pending(self) -> int:
        """Tokens fed since the last step ended."""
        return len(self._ids)

    def feed(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float] = (),
        tops: Sequence[tuple[float, ...]] = (),
    ) -> list[Step]:
        """Take tokens in, and what is known of each; return the steps that they end."""
        steps: list[Step] = []
        if self.ended:
            return steps
        first, room, state = 0, self._limit - self._begun - len(self._ids), self._state
        for at, token in enumerate(ids):
            state, stop, cut = state.next.get(token) or self._patterns.step(state, token)
            if stop is None:
                if at - first + 1 < room:
                    continue
                stop = Stop.STEP
            end = at + 1
            self._take(ids[first:end], logprobs[first:end], tops[first:end])
            steps.append(self._emit(stop, cut))
            first, room = end, self._limit
            if stop is Stop.END:
                self.ended = True
                return steps
        self._take(ids[first:], logprobs[first:], tops[first:])
        self._state = state
        return steps

    def finish(self, stop: Stop) -> Step | None:
        """What is left when the stream ends: None if it ended just after a step."""
        if self.ended or not self._ids:
            return None
        self.ended = True
        return self._emit(stop, 0)

    def _take(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float],
        tops: Sequence[tuple[float, ...]],
    ) -> None:
        self._ids.extend(ids)
        self._logprobs.extend(logprobs)
        self._tops.extend(tops)

    def _emit(self, stop: Stop, cut: int) -> Step:
        step = Step(
            text=self._text(stop, cut),
            token_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            stop=stop,
            version=self.version,
            count=len(self._ids),
            tops=tuple(self._tops),
        )
        self._ids.clear()
        self._logprobs.clear()
        self._tops.clear()
        self._begun = 0
        return step

    def _text(self, stop: Stop, cut: int) -> str:
        data = b"".join(map(self._patterns.piece, self._ids))
        if cut > len(data):
            return ""
        # At LENGTH half a character stays out of the text: another request may complete it.
        return self._utf8.decode(data[: len(data) - cut], stop is Stop.END)
