"""vLLM's own kernels on a CPU where it computes with several of torch's.

Without compilation vLLM's normalisation is seven operations of torch on a CPU, and its gated
activation four, though it is built with a kernel for each that it calls on a GPU. Of a small model
they were a sixth of a pass. Importing this module, as an engine's process does before it makes its
worker, puts the kernels in their place.
"""

from __future__ import annotations

import torch
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

from server.engine.repack import Repack

LANES = 32  # a kernel refuses a row that is no multiple of the vector it reads: 8 numbers or more


class Worker(Repack):
    """The `worker_extension_cls` of an engine on a CPU."""


def norm(
    layer: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """In place of `forward_cpu`: of `x` (..., hidden), or of the sum that is the next residual.
    With a residual both are overwritten, as vLLM's is on a GPU."""
    weight, added = layer.weight.data, x if residual is None else residual
    plain = layer.has_weight and layer.variance_size_override is None and weight.dtype == x.dtype
    if not (plain and _readable(x, x.shape[-1]) and added.is_contiguous()):
        return layer.forward_native(x, residual)
    if residual is None:
        found = torch.empty_like(x)
        torch.ops._C.rms_norm(found, x, weight, layer.variance_epsilon)
        return found
    torch.ops._C.fused_add_rms_norm(x, residual, weight, layer.variance_epsilon)
    return x, residual


def gated(layer: SiluAndMul, x: torch.Tensor) -> torch.Tensor:
    """In place of `forward_cpu`: (..., 2 d) to (..., d)."""
    size = x.shape[-1] // 2
    if not _readable(x, size):
        return layer.forward_native(x)
    found = x.new_empty((*x.shape[:-1], size))
    torch.ops._C.silu_and_mul(found, x)
    return found


def _readable(x: torch.Tensor, size: int) -> bool:
    """By a kernel, in rows of that size."""
    return x.is_contiguous() and size % LANES == 0


current_platform.import_kernels()
if current_platform.is_cpu() and hasattr(torch.ops._C, "rms_norm"):
    RMSNorm.forward_cpu = norm
    SiluAndMul.forward_cpu = gated
