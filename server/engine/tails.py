"""A prefix cache that is finer than a block of KV.

vLLM caches whole blocks, 32 tokens on a CPU. A step of a search is shorter than that, so that a
request for the next one would compute on average half a block of its prompt again: more tokens
than it writes. So the unfinished block of a request that has ended is kept, and one that goes on
from there begins with a copy of it, by vLLM's own copy-on-write of shared blocks.

What is kept holds blocks that are otherwise free: at most a share of them, the one unused for
longest is the first to go, and all of them go before a request would have to wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request
from vllm.v1.worker import gpu_model_runner

from server.engine.together import UnpackingScheduler

SHARE = 0.25  # of all blocks, that may be kept
LEAST_FREE = 0.1  # of all blocks; what is kept is given back below it
PLAIN = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # types of so many bytes
Key = tuple[Hashable, tuple[int, ...]]  # what the block follows, and the tokens in it


@dataclass(slots=True)
class Tails:
    """Unfinished blocks by what they hold, least recently used first."""

    most: int  # blocks
    _kept: OrderedDict[int, tuple[KVCacheBlock, list[Key]]] = field(default_factory=OrderedDict)
    _by_key: dict[Key, int] = field(default_factory=dict)  # to the block's id

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, before: Hashable, tokens: tuple[int, ...], block: KVCacheBlock
    ) -> list[KVCacheBlock]:
        """Keep `block`, if none with the same is kept. Returns those that are not kept, or no
        longer: one reference to each is to be given back.

        A request must compute its last token, so that one which asks for these very tokens again
        can use all but that: a block has a key for both. Of blocks with the same key the youngest
        has it, as it stays longest."""
        assert tokens
        if self._use((before, tokens)) is not None:
            return [block]
        keys = [(before, part) for part in (tokens, tokens[:-1]) if part]
        useless = []
        for older, key in [(self._by_key[key], key) for key in keys if key in self._by_key]:
            its_block, its_keys = self._kept[older]
            its_keys.remove(key)
            if not its_keys:
                del self._kept[older]
                useless.append(its_block)
        self._kept[block.block_id] = block, keys
        self._by_key |= dict.fromkeys(keys, block.block_id)
        return useless + self.shed(len(self._kept) - self.most)

    def find(self, before: Hashable, tokens: Sequence[int]) -> tuple[KVCacheBlock, int] | None:
        """The block that holds most of the beginning of `tokens`, and how many of them."""
        for size in range(len(tokens), 0, -1):
            block = self._use((before, tuple(tokens[:size])))
            if block is not None:
                return block, size
        return None

    def shed(self, count: int) -> list[KVCacheBlock]:
        """Forget so many."""
        forgotten = []
        for _ in range(max(0, min(count, len(self._kept)))):
            _, (block, keys) = self._kept.popitem(last=False)
            for key in keys:
                del self._by_key[key]
            forgotten.append(block)
        return forgotten

    def _use(self, key: Key) -> KVCacheBlock | None:
        found = self._by_key.get(key)
        if found is None:
            return None
        self._kept.move_to_end(found)
        return self._kept[found][0]


def copy_blocks(
    caches: Iterable[torch.Tensor], blocks: int, copies: Sequence[tuple[int, int]]
) -> None:
    """Of every cache, one block's content into another's. A block is written to after it was read.

    vLLM's own copies bytes one by one on a CPU: 79 us for a block of the four layers of the
    reference policy, a twelfth of what a step costs the engine; NumPy takes 4, and torch 10.
    """
    for cache in {cache.data_ptr(): cache for cache in caches}.values():  # layers may share one
        plain = cache.view(PLAIN[cache.element_size()]).numpy()  # NumPy has no bfloat16
        whole = plain.reshape(blocks, -1, *plain.shape[1:])
        for source, target in copies:
            whole[target] = whole[source]


class TailScheduler(UnpackingScheduler):
    """vLLM's scheduler, with `Tails`. For one group of full attention; else it keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._blocks = self.kv_cache_manager.block_pool.num_gpu_blocks - 1  # one is no request's
        groups = self.kv_cache_config.kv_cache_groups
        plain = len(groups) == 1 and self.connector is None and not self.defer_block_free
        plain &= type(groups[0].kv_cache_spec).__name__ == "FullAttentionSpec"
        plain &= self.kv_cache_manager.enable_caching
        self._tails = Tails(int(SHARE * self._blocks) if plain else 0)
        self._least_free = int(LEAST_FREE * self._blocks)
        if plain and current_platform.is_cpu():  # where the worker lives in this process
            gpu_model_runner.copy_kv_cache_blocks_inplace = copy_blocks

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        if self._tails:
            free = self.kv_cache_manager.block_pool.get_num_free_blocks()
            self._release(self._tails.shed(self._wanted() - free))
        return super().schedule(*args, **kwargs)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        self._release(self._tails.shed(len(self._tails)))
        return bool(super().reset_prefix_cache(*args, **kwargs))

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """What is kept is free for whoever needs it."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.kv_cache_usage -= len(self._tails) / self._blocks
        return stats

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[Any, int, int, bool]:
        blocks, cached, boundary, diverged = super()._get_local_prefix_cache_hit(request)
        if not self._tails or not self.kv_cache_manager.prefix_cache_lookup_enabled(request):
            return blocks, cached, boundary, diverged
        end = min(cached + self.block_size, request.num_tokens) - 1
        rest = request.all_token_ids[cached:end]
        found = self._tails.find(self._before(request, cached), rest)
        if found is None:
            return blocks, cached, boundary, diverged
        whole, size = list(blocks.blocks[0]), found[1]
        shared = self.kv_cache_manager.create_kv_cache_blocks(([*whole, found[0]],))
        return shared, cached + size, boundary, diverged

    def _free_request_blocks(self, request: Request) -> None:
        """Keep what no full block holds, before the request gives it back."""
        computed = min(request.num_computed_tokens, request.num_tokens)  # without an unread draft
        if self._tails.most and computed:  # blocks that its last pass filled: vLLM's next one would
            self.kv_cache_manager.cache_blocks(request, computed)
        at = computed // self.block_size
        tail = tuple(request.all_token_ids[at * self.block_size : computed])
        if tail and self._tails.most and self._has_tail(request, at) and not request.mm_features:
            manager = self.kv_cache_manager.coordinator.single_type_managers[0]
            block = manager.req_to_blocks[request.request_id][at]
            self.kv_cache_manager.block_pool.touch([block])
            before = self._before(request, at * self.block_size)
            self._release(self._tails.keep(before, tail, block))
        super()._free_request_blocks(request)

    def _wanted(self) -> int:
        """Blocks that are to be free before requests are scheduled."""
        if not self.waiting:
            return self._least_free
        tokens = self.waiting.peek_request().num_tokens + self.num_spec_tokens
        first: int = cdiv(tokens, self.block_size) + 1
        spare: int = self.kv_cache_manager.watermark_blocks
        return max(self._least_free, first + spare)

    def _has_tail(self, request: Request, at: int) -> bool:
        manager = self.kv_cache_manager.coordinator.single_type_managers[0]
        blocks = manager.req_to_blocks.get(request.request_id, ())
        # A block that others share has more readers than this request, and may have another owner.
        return len(blocks) > at and blocks[at].ref_cnt == 1 and blocks[at].block_hash is None

    def _before(self, request: Request, tokens: int) -> Hashable:
        """What an unfinished block goes on from. The hash of a block covers all before it."""
        if tokens:
            whole: bytes = request.block_hashes[tokens // self.block_size - 1]
            return whole
        lora = request.lora_request
        return (lora.lora_int_id if lora else 0, request.cache_salt)

    def _release(self, blocks: Sequence[KVCacheBlock]) -> None:
        self.kv_cache_manager.block_pool.free_blocks(blocks)
