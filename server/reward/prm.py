"""A process reward model in this process, by vLLM's pooling, on a prefix cache.

Any model whose head gives one or two labels a token: Qwen2.5-Math-PRM's kind, or any
`ForTokenClassification`. vLLM applies the activation that the model's config asks for: softmax
for two labels (the verdict is the second one), sigmoid for one, none for `problem_type:
regression`, whose values must lie in [0, 1] by themselves.

STEP pooling would switch the prefix cache off; ALL pooling has it, but vLLM does not read it for
a token task unless told. A pass then has rows only for what was not cached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from vllm import PoolingParams
from vllm.config import PoolerConfig
from vllm.inputs import tokens_input
from vllm.outputs import PoolingRequestOutput

from server.config import VllmSettings
from server.engine.llm import Llm, llm_boundary, terminate
from server.engine.tokenizer import HFTokenizer
from server.engine.weights import fingerprint
from server.errors import EngineDead, ScorerError
from server.reward.client import Memory, Rows
from server.types import Load

TASK = "token_classify"


class VllmPrm:
    """`server.reward.client.PrmClient`."""

    def __init__(
        self, settings: VllmSettings, step_token: str, *, on_exit: Callable[[], None] = terminate
    ):
        arguments = {
            "runner": "pooling",
            "pooler_config": PoolerConfig(task=TASK, tok_pooling_type="ALL"),
        }
        self._llm = Llm(settings, defaults=arguments, on_exit=on_exit)
        self._model = settings.model
        self._step_token = step_token
        self.name = self._llm.name
        self.memory = Memory()
        self.tokenizer: HFTokenizer
        self.version = ""
        self.context = 0
        self.step_id = -1

    async def start(self) -> None:
        """Load tokenizer and weights, and ask for one verdict, so that a model that is no PRM
        fails here. Raises `EngineError`, `ScorerError`, `BadRequest` on unusable settings."""
        with llm_boundary(f"reading {self._model}"):
            self.tokenizer, self.version = await asyncio.gather(
                asyncio.to_thread(HFTokenizer, self._model),
                asyncio.to_thread(fingerprint, self._model),
            )
        self.step_id = self.tokenizer.ids_of(self._step_token)
        await self._llm.start()
        self.context = self._llm.context
        try:
            await self.rows((self.step_id,))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._llm.close()

    def load(self) -> Load:
        return self._llm.load

    async def check(self) -> None:
        """Raises `EngineDead` if the engine's process is gone."""
        with llm_boundary(f"checking {self.name}"):
            await self._llm.engine.check_health()

    async def rows(self, ids: Sequence[int], *, reuse: bool = True) -> Rows:
        with llm_boundary(f"asking {self.name} for verdicts"):
            params = PoolingParams(task=TASK, skip_reading_prefix_cache=not reuse)
            prompt = tokens_input(list(ids))
            outputs = self._llm.engine.encode(prompt, params, self._llm.request_id())
            async for output in outputs:
                return self._rows(ids, output)
        raise EngineDead(f"{self.name} ended a request without an answer")

    def _rows(self, ids: Sequence[int], output: PoolingRequestOutput) -> Rows:
        cached, data = output.num_cached_tokens, output.outputs.data  # data: [rows, labels]
        computed = len(ids) - cached
        if data.ndim != 2 or data.shape[0] != computed or data.shape[1] not in (1, 2):
            raise ScorerError(
                f"{self.name} gave rows of shape {tuple(data.shape)} for {computed} tokens; "
                "a process reward model gives one row a token, of one or two labels"
            )
        marks = [at for at in range(cached, len(ids)) if ids[at] == self.step_id]
        verdicts = data[[at - cached for at in marks], -1].tolist()
        return Rows(dict(zip(marks, verdicts, strict=True)), computed, cached)
