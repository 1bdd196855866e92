"""The nouns everything else is written in. Imports nothing of ours."""

from __future__ import annotations

from server.types.engine import Engine, Load, Stream, Tokenizer
from server.types.node import Node, Status
from server.types.operator import Behaviour, Operator
from server.types.prompt import Message, Prompt
from server.types.scorer import Judge, Score, Scorer
from server.types.step import Cut, Sampling, Step, Stop

__all__ = [
    "Behaviour",
    "Cut",
    "Engine",
    "Judge",
    "Load",
    "Message",
    "Node",
    "Operator",
    "Prompt",
    "Sampling",
    "Score",
    "Scorer",
    "Status",
    "Step",
    "Stop",
    "Stream",
    "Tokenizer",
]
