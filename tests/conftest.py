"""What tests of every folder may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.valkey import Valkey, running

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A server that runs, empty; what is in it is lost when it is killed."""
    with running() as server:
        yield server


@pytest.fixture
def durable_valkey() -> Iterator[Valkey]:
    """A server that runs, empty; what is in it is there again after `kill` and `start`."""
    with running(durable=True) as server:
        yield server
