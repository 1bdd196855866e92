"""Rewards that know, or find out, whether an answer is right. One file each, one line here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.reward.verifiers.countdown import Countdown
from server.reward.verifiers.http import Http
from server.reward.verifiers.json_schema import JsonSchema
from server.reward.verifiers.math import Math
from server.reward.verifiers.python_tests import PythonTests
from server.reward.verifiers.regex import Regex
from server.reward.verifiers.verifier import Verifier, VerifierJudge

AnyVerifier = Annotated[
    Math | Countdown | Regex | JsonSchema | PythonTests | Http, Field(discriminator="kind")
]

__all__ = [
    "AnyVerifier",
    "Countdown",
    "Http",
    "JsonSchema",
    "Math",
    "PythonTests",
    "Regex",
    "Verifier",
    "VerifierJudge",
]
