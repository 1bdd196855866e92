"""Reward models in this process, by vLLM's pooling, on a prefix cache.

Every style is one thing to vLLM: a head over each token's hidden state. It is the model's own
(Qwen2.5-Math-PRM's kind, any `ForTokenClassification`, any `ForSequenceClassification`), or the
difference of two rows of a causal LM's output matrix, whose sigmoid is the good label's share of
both labels. vLLM applies the activation that the model's config asks for: softmax for two labels
(the verdict is the second one), sigmoid for one, none for `problem_type: regression`, whose
values must lie in [0, 1] by themselves.

STEP pooling would switch the prefix cache off; ALL pooling has it, but vLLM does not read it for
a token task unless told. A pass then has rows only for what was not cached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import AutoConfig
from vllm import PoolingParams
from vllm.config import PoolerConfig
from vllm.inputs import tokens_input
from vllm.outputs import PoolingRequestOutput
from vllm.platforms import current_platform

from server.config import OrmSettings, VllmSettings
from server.engine.checkpoint import BadWeights, Checkpoint, look_over
from server.engine.llm import Llm, llm_boundary, terminate
from server.engine.tails import TailScheduler
from server.engine.tokenizer import HFTokenizer
from server.engine.weights import fingerprint
from server.errors import BadRequest, EngineDead, ScorerError
from server.profiles import PrmProfile
from server.reward.client import Memory, Rows
from server.reward.layout import Layout
from server.types import Load

TASK = "token_classify"
# What a model's config may ask to be done to its logits, and a head over two of them lacks.
LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class VllmPooling:
    """`server.reward.client.RewardModel`; tokenizer, version and context are set by `start`."""

    tokenizer: HFTokenizer

    def __init__(
        self,
        settings: VllmSettings,
        *,
        activation: bool,
        on_exit: Callable[[], None] = terminate,
    ):
        self._arguments: dict[str, Any] = {
            "runner": "pooling",
            "pooler_config": PoolerConfig(task=TASK, tok_pooling_type="ALL"),
        }
        if current_platform.is_cpu():
            self._arguments["scheduler_cls"] = TailScheduler
        # A scorer that keeps the policy from its core gets many small batches, and the policy fewer
        # tokens; one that waits finds more to read at once.
        self._llm = Llm(settings, defaults=self._arguments, on_exit=on_exit, yielding=True)
        self._engine = settings
        self._activation = activation
        self.name = self._llm.name
        self.memory = Memory()
        self.version = ""
        self.context = 0
        self._closed = False
        self._weights: Checkpoint

    async def start(self) -> None:
        """Load tokenizer and weights, and ask for one verdict, so that a model that is no reward
        model fails here. Raises `EngineError`, `ScorerError`; `BadRequest` on unusable settings."""
        with llm_boundary(f"reading {self._engine.model}"):
            self.tokenizer, self.version = await asyncio.gather(
                asyncio.to_thread(HFTokenizer, self._engine.model),
                asyncio.to_thread(fingerprint, self._engine.model),
            )
            await asyncio.to_thread(self._prepare)
        self._llm.version = self.version
        self._weights = self._llm.weights
        await self._llm.start()
        self.context = self._llm.context
        await self._try()

    async def _try(self) -> None:
        try:
            await self.rows((0,), (0,))
        except BaseException:
            await self.close()
            raise

    def _prepare(self) -> None:
        """With the tokenizer there, before the weights are loaded."""

    async def close(self) -> None:
        """Of an engine that several share, the last one ends it."""
        if not self._closed:
            self._closed = True
            await self._llm.close()

    @property
    def folder(self) -> str:
        """Where its weights come from; or a hub name."""
        return str(self._weights.folder)

    async def look_over(self, folder: Path) -> Checkpoint:
        """The weights in `folder`, if this model can go over to them. Raises `BadWeights`."""
        with llm_boundary(f"reading {folder}"):
            found = await asyncio.to_thread(
                look_over, folder, "prm", self._llm.model, self.tokenizer
            )
        if found.rank is not None:
            raise BadWeights(f"{folder} is an adapter, which no reward model takes")
        return found

    def drains(self, found: Checkpoint) -> bool:
        """Whether no search may run while it goes over to these."""
        return found.version != self._llm.version and self._llm.reloads(found)

    async def successor(self, found: Checkpoint) -> Self:
        """A model with these weights, ready to serve. Unless it `drains`, this one goes on. Each
        is to be closed. Raises `EngineError` or `ScorerError`, with this one as it was."""
        other = copy(self)
        other.version, other._closed = found.version, False
        other._llm = await self._llm.loaded(found)
        other._weights = other._llm.weights
        try:
            await other._try()
        except BaseException:
            await self.restore()
            raise
        return other

    async def restore(self) -> None:
        """Have the engine with its own weights again, in which a successor took its place; with no
        request. Raises `EngineDead` if it does not come back."""
        await self._llm.restore(self._weights)

    def load(self) -> Load:
        return self._llm.load

    async def check(self) -> None:
        """Raises `EngineDead` if the engine's process is gone."""
        with llm_boundary(f"checking {self.name}"):
            await self._llm.engine.check_health()

    async def rows(self, ids: Sequence[int], marks: Sequence[int], *, reuse: bool = True) -> Rows:
        params = PoolingParams(
            task=TASK, use_activation=self._activation, skip_reading_prefix_cache=not reuse
        )
        with llm_boundary(f"asking {self.name} for verdicts"):
            prompt = tokens_input(list(ids))
            outputs = self._llm.engine.encode(prompt, params, self._llm.request_id())
            async for output in outputs:
                return self._rows(ids, marks, output)
        raise EngineDead(f"{self.name} ended a request without an answer")

    def _rows(self, ids: Sequence[int], marks: Sequence[int], output: PoolingRequestOutput) -> Rows:
        cached, data = output.num_cached_tokens, output.outputs.data  # data: [rows, labels]
        computed = len(ids) - cached
        if data.ndim != 2 or data.shape[0] != computed or data.shape[1] not in (1, 2):
            raise ScorerError(
                f"{self.name} gave rows of shape {tuple(data.shape)} for {computed} tokens; "
                "a reward model gives one row a token, of one or two labels"
            )
        marks = [at for at in marks if at >= cached]
        verdicts = self._verdicts(data[[at - cached for at in marks]]).tolist()
        return Rows(dict(zip(marks, verdicts, strict=True)), computed, cached)

    def _verdicts(self, rows: Tensor) -> Tensor:
        """[rows, labels] to [rows]."""
        return rows[:, -1]


class VllmPrm(VllmPooling):
    """`server.reward.client.PrmClient`."""

    layout: Layout  # set by `start`

    def __init__(
        self,
        settings: VllmSettings,
        profile: PrmProfile,
        *,
        on_exit: Callable[[], None] = terminate,
    ):
        super().__init__(settings, activation=True, on_exit=on_exit)
        self._profile = profile

    def _prepare(self) -> None:
        self.layout = Layout(self.tokenizer, self._profile)
        if self.layout.labels is None:
            return
        self._refuse()
        self._arguments["convert"] = "classify"
        self._arguments["hf_overrides"] = {
            "classifier_from_token": [self.tokenizer.name_of(i) for i in self.layout.labels],
            "method": "from_2_way_softmax",
        }

    def _refuse(self) -> None:
        """Raise if labels cannot be had of this model by the head that stands for them."""
        if "hf_overrides" in self._engine.extra:
            message = f"style {self._profile.style} makes hf_overrides of its own"
            raise BadRequest(message, param="prm.engine.extra")
        config = AutoConfig.from_pretrained(
            self._engine.model, trust_remote_code=False
        ).get_text_config()
        if changed := [name for name in LOGITS if getattr(config, name, None) not in (None, 1)]:
            message = f"{self.name} has {changed[0]}: its labels can be read over HTTP only"
            raise BadRequest(message, param="prm.style")


class VllmOrm(VllmPooling):
    """`server.reward.client.OrmClient`."""

    def __init__(
        self,
        settings: VllmSettings,
        orm: OrmSettings,
        *,
        on_exit: Callable[[], None] = terminate,
    ):
        super().__init__(settings, activation=False, on_exit=on_exit)
        self.settings = orm

    def _verdicts(self, rows: Tensor) -> Tensor:
        return rows[:, -1] - rows[:, 0] if rows.shape[1] == 2 else rows[:, -1]
