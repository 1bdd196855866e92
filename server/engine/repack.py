"""What runs beside vLLM's own code in an engine's process, when weights were exchanged in it."""

from __future__ import annotations

from typing import Any


class Repack:
    """A `worker_extension_cls`: its methods become the worker's."""

    model_runner: Any

    def repack(self) -> list[str]:
        """On a CPU an output matrix is computed with from a packed copy, which `reload_weights`
        makes anew of a layer that loads weights. One that is tied to the embedding loads none:
        its log-probabilities would be 0.02 off in the mean for weights 2 % apart. The names of
        the layers that were packed.
        """
        packed = []
        for name, layer in self.model_runner.get_model().named_modules():
            if hasattr(layer, "cpu_linear") and hasattr(layer, "num_embeddings"):
                layer.quant_method.process_weights_after_loading(layer)
                packed.append(name)
        return packed
