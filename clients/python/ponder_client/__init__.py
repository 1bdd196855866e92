"""The client of Ponder, the inference-time reasoning server.

    from ponder_client import Ponder

    with Ponder("http://127.0.0.1:8000") as ponder:
        reply = ponder.reason("Use 4 9 10 13 to make 24.", strategy="mcts", deadline=30)
        print(reply.answer.content)

`AsyncPonder` is the same with `await`.
"""

from ponder_client.aio import AsyncPonder, AsyncTraces
from ponder_client.asked import Asked, Budget, Message
from ponder_client.client import Ponder, Traces
from ponder_client.errors import (
    BadReply,
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NoAnswer,
    NotFound,
    Overloaded,
    PonderError,
    Refused,
    ServerFailed,
    StreamBroken,
    Unauthorized,
    Unreachable,
)
from ponder_client.events import (
    AnswerEvent,
    DecisionEvent,
    DoneEvent,
    Event,
    PruneEvent,
    ScoreEvent,
    StepEvent,
    UsageEvent,
)
from ponder_client.replies import (
    Answer,
    Feedback,
    Model,
    Node,
    Preset,
    Reason,
    Score,
    Step,
    Tokens,
    Usage,
)
from ponder_client.streams import AsyncStream, Stream
from ponder_client.traces import Page, Trace, TraceSummary
from ponder_client.tries import Patience

__all__ = [
    "Answer",
    "AnswerEvent",
    "Asked",
    "AsyncPonder",
    "AsyncStream",
    "AsyncTraces",
    "BadReply",
    "BadRequest",
    "Budget",
    "Conflict",
    "DeadlineExceeded",
    "DecisionEvent",
    "DoneEvent",
    "Event",
    "Feedback",
    "Forbidden",
    "Message",
    "Model",
    "NoAnswer",
    "Node",
    "NotFound",
    "Overloaded",
    "Page",
    "Patience",
    "Ponder",
    "PonderError",
    "Preset",
    "PruneEvent",
    "Reason",
    "Refused",
    "Score",
    "ScoreEvent",
    "ServerFailed",
    "Step",
    "StepEvent",
    "Stream",
    "StreamBroken",
    "Tokens",
    "Trace",
    "TraceSummary",
    "Traces",
    "Unauthorized",
    "Unreachable",
    "Usage",
    "UsageEvent",
]
