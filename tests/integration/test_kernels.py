"""What is computed in place of vLLM's layers on a CPU is what they compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm

from server.engine import kernels
from server.engine.arguments import arguments
from tests.integration.conftest import settings

pytestmark = pytest.mark.vllm

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 192), (57, 192), (3, 4, 64), (3, 20)]  # 20: no kernel takes rows of that size


@pytest.fixture(autouse=True)
def config() -> Iterator[None]:
    with set_current_vllm_config(VllmConfig()):
        yield


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """But for a rounding or two, as vLLM's layer rounds before it multiplies by the weight, and the
    order in which a row is added up."""
    rtol = max(1e-5, 4 * torch.finfo(ours.dtype).eps)
    return bool(torch.allclose(ours.float(), theirs.float(), rtol=rtol, atol=1e-6))


def layer_for(x: torch.Tensor, **given: int) -> RMSNorm:
    layer = RMSNorm(x.shape[-1], dtype=x.dtype, **given)
    layer.weight.data.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    layer = layer_for(x)
    assert close(kernels.norm(layer, x), layer.forward_native(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_of_a_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    layer = layer_for(x)
    normed, total = layer.forward_native(x.clone(), residual.clone())
    ours, our_total = kernels.norm(layer, x, residual)
    assert close(ours, normed) and close(our_total, total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gated_activation(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    assert close(kernels.gated(SiluAndMul(), x), SiluAndMul.forward_native(x))


def test_what_the_kernels_cannot_read_is_left_to_the_layer() -> None:
    whole = torch.randn(6, 5, 64, dtype=torch.bfloat16)
    strided = whole[:, 1]
    assert not strided.is_contiguous()
    layer = layer_for(strided)
    assert torch.equal(kernels.norm(layer, strided), layer.forward_native(strided))
    assert torch.equal(kernels.gated(SiluAndMul(), strided), SiluAndMul.forward_native(strided))
    part = layer_for(whole, var_hidden_size=32)
    assert torch.equal(kernels.norm(part, whole), part.forward_native(whole))
    wide = layer_for(whole.float())
    assert torch.equal(kernels.norm(wide, whole), wide.forward_native(whole))


def test_an_engine_on_a_cpu_has_them() -> None:
    engine = arguments(settings("policy"))
    assert engine.worker_extension_cls == f"{kernels.__name__}.{kernels.Worker.__name__}"
    with set_current_vllm_config(engine.create_engine_config()):
        assert RMSNorm(8)._forward_method.__func__ is kernels.norm
        assert SiluAndMul()._forward_method.__func__ is kernels.gated
