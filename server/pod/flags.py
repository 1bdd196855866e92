"""What vLLM is told on its command line and in its environment."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from server.engine.repack import Repack
from server.sources import SettingsError

NAME = "ponder"  # of the plugin
GROUP = "vllm.endpoint_plugins"
# Plugins that vLLM loads unless told which; told of ours, it would load no other.
OTHERS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.stat_logger_plugins",
    "vllm.io_processor_plugins",
)
NAMED = "--served-model-name"
OURS = {"--worker-extension-cls": f"{Repack.__module__}.{Repack.__qualname__}"}


def check_installed() -> None:
    """vLLM finds the plugin by the package's metadata. Raises `SettingsError`."""
    if NAME not in {found.name for found in entry_points(group=GROUP)}:
        raise SettingsError(["the package is not installed as it is: pip install -e ."])


def value_of(flag: str, given: Sequence[str]) -> str:
    """Of a flag that must be there once."""
    found = [
        word.partition("=")[2] if "=" in word else next(iter(given[at + 1 : at + 2]), "")
        for at, word in enumerate(given)
        if word.partition("=")[0] == flag
    ]
    if len(found) != 1 or not found[0]:
        raise SettingsError([f"{flag} must be given once, such as {flag}=models/policy"])
    return found[0]


def flags(given: Sequence[str], model: str, folder: str) -> list[str]:
    """Those for vLLM: `folder`, by the name of `model` if no other is given."""
    names = {word.partition("=")[0].replace("_", "-") for word in given}
    if twice := sorted(OURS.keys() & names):
        raise SettingsError([f"{twice[0]} is not to be given: it is {OURS[twice[0]]}"])
    if "--headless" in names:
        raise SettingsError(["--headless: a server of several nodes follows no announcements"])
    kept = list(given)
    at = next(i for i, word in enumerate(kept) if word.partition("=")[0] == "--model")
    del kept[at : at + (1 if "=" in kept[at] else 2)]
    ours = {} if NAMED in names else {NAMED: model}
    more = {"--model": folder} | ours | OURS
    return [*kept, *(f"{flag}={value}" for flag, value in more.items())]


def plugins(allowed: str | None) -> list[str]:
    """The names that vLLM may load: those it would have, and ours."""
    if allowed is not None:
        return [*filter(None, allowed.split(",")), NAME]
    return [*sorted({found.name for group in OTHERS for found in entry_points(group=group)}), NAME]
