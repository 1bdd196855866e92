"""`python -m server.pod FLAGS`: vLLM's own API server, that follows announced weights.

The flags are vLLM's, with `--model` as the base: the weights to begin with while none are
announced, and the name by which requests call the model whatever its version. What is ours comes
from the environment (`settings.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys

from vllm.entrypoints.launchers.api_server.entry import main as serve

from server.pod.flags import check_installed, flags, plugins, value_of
from server.pod.settings import pod_settings
from server.pod.version import first
from server.sources import SettingsError


def main() -> None:
    try:
        settings = pod_settings(os.environ)
        model = value_of("--model", sys.argv[1:])
        check_installed()
        folder = asyncio.run(first(settings, model))
        sys.argv[1:] = flags(sys.argv[1:], model, folder)  # which vLLM reads itself
    except SettingsError as error:
        sys.exit("\n".join(f"server.pod: {problem}" for problem in error.problems))
    os.environ["VLLM_PLUGINS"] = ",".join(plugins(os.environ.get("VLLM_PLUGINS")))
    serve()


if __name__ == "__main__":
    main()
