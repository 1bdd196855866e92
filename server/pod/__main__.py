"""`python -m server.pod FLAGS`: vLLM's own API server, that follows announced weights.

The flags are vLLM's, with `--model` as the base: the weights to begin with while none are
announced, and the name by which requests call the model whatever its version. What is ours comes
from the environment (`settings.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from vllm.entrypoints.launchers.api_server.entry import main as serve

from server.engine.repack import Repack
from server.pod.plugin import NAME
from server.pod.settings import pod_settings
from server.pod.version import first
from server.sources import SettingsError

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


def main() -> None:
    try:
        settings = pod_settings(os.environ)
        model = value_of("--model", sys.argv[1:])
        if NAME not in {found.name for found in entry_points(group=GROUP)}:
            raise SettingsError(["the package is not installed: pip install -e ."])
        folder = asyncio.run(first(settings, model))
        sys.argv[1:] = flags(sys.argv[1:], model, folder)  # which vLLM reads itself
    except SettingsError as error:
        sys.exit("\n".join(f"server.pod: {problem}" for problem in error.problems))
    os.environ["VLLM_PLUGINS"] = ",".join(plugins(os.environ.get("VLLM_PLUGINS")))
    serve()


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


if __name__ == "__main__":
    main()
