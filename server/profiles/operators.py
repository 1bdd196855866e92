"""The six reasoning behaviours of arXiv 2412.14135, section 3.3, as general prompt operators."""

from __future__ import annotations

from collections.abc import Mapping

from server.types import Behaviour, Operator

OPERATORS: Mapping[Behaviour, Operator] = {
    Behaviour.PROBLEM_ANALYSIS: Operator(
        ask="Before you solve it, say in your own words what is given, which constraints hold and "
        "what exactly is asked. Do not solve it yet.",
        aside=True,
    ),
    Behaviour.TASK_DECOMPOSITION: Operator(
        ask="Split the task into a short numbered list of smaller tasks. Do not do them yet.",
        aside=True,
    ),
    Behaviour.TASK_COMPLETION: Operator(
        ask="Now carry it out step by step, and end with the final answer."
    ),
    Behaviour.ALTERNATIVE_PROPOSAL: Operator(
        ask="Take a different approach: carry it out from the beginning and end with the final "
        "answer.",
        fresh=True,
    ),
    Behaviour.SELF_EVALUATION: Operator(
        ask="Check what you have written so far, step by step. Say whether it is right and, if "
        "not, where the first mistake is. Do not give a new answer yet.",
        aside=True,
    ),
    Behaviour.SELF_CORRECTION: Operator(
        ask="Correct what is wrong, and write the whole corrected solution with its final answer.",
        fresh=True,
    ),
}
