from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer import tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.policy(tmp_path_factory.mktemp("model"))
