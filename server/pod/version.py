"""Which version a server that starts begins with: the present one, if it is whole."""

from __future__ import annotations

import logging
from pathlib import Path

from server.engine.checkpoint import look_over
from server.engine.tokenizer import HFTokenizer
from server.engine.weights import fingerprint
from server.errors import BadRequest
from server.pod.settings import PodSettings
from server.promotions import Promotions
from server.published import manifest_of
from server.sources import SettingsError
from server.state.announced import Announced
from server.state.connection import Connection

log = logging.getLogger("ponder.pod")


def promotions_of(settings: PodSettings, connection: Connection | None) -> Promotions:
    announced = Announced(connection) if connection is not None else None
    return Promotions(settings.weights.folder, announced)


def version_of(model: str) -> str:
    """Of a version's folder, any other folder, or a hub name."""
    folder = Path(model)
    manifest = manifest_of(folder) if folder.is_dir() else None
    return manifest.version if manifest else fingerprint(model)


async def first(settings: PodSettings, model: str) -> str:
    """The folder to begin with: that of the version promoted last, else `model`. Raises
    `SettingsError` for a file of the settings that cannot be read."""
    try:
        connection = Connection(settings.redis) if settings.redis else None
    except OSError as error:
        raise SettingsError([f"redis: {error}"]) from error
    try:
        newest = (await promotions_of(settings, connection).newest()).get(settings.part)
    finally:
        if connection is not None:
            await connection.redis.aclose()
    if newest is None:
        return model
    try:
        found = look_over(newest.folder, settings.part, model, HFTokenizer(model))
    except (BadRequest, OSError) as error:
        log.error("announced, but not served: %s: %s", newest.version, error)
        return model
    return str(newest.folder) if found.rank is None else model
