"""Configuration of the Associative Recurrent Memory Transformer."""

from .configuration_base import RecurrentConfig

EXECUTORS = ("sequential", "diagonal", "auto")


class ArmtConfig(RecurrentConfig):
    """Options of `ArmtForCausalLM`, beside those of `RecurrentConfig`; memory tokens follow every segment.

    Args:
        d_mem: width of keys and queries before the feature map (d in arXiv 2407.04841).
        nu: order of the DPFP feature map; a key has 2 * d_mem * nu features.
        use_correction: scale what is added to the normaliser z by gamma (equation 3); without it gamma is 1.
        memory_layers: layers of the backbone that carry a memory, ascending, from 0; None: all.
        executor: order of the cells (layer, segment): `sequential`; `diagonal`, which fills a GPU better; or `auto`,
            the faster of both, measured once for each shape: they agree to rounding, not bit for bit.

    Raises:
        ValueError: an option is out of its range; the message gives the option and its value.
    """

    model_type = "armt"

    d_mem: int = 64
    nu: int = 3
    use_correction: bool = True
    memory_layers: list[int] | None = None
    executor: str = "sequential"

    def check_ranges(self) -> None:
        super().check_ranges()
        self._check_least("d_mem", 1)
        self._check_least("nu", 1)
        self._check_choice("executor", EXECUTORS)
        if self.nu >= 2 * self.d_mem:
            raise ValueError(f"nu is {self.nu}; it must be below 2 * d_mem = {2 * self.d_mem}: rolls would repeat")
        if self.memory_layers is not None and self.backbone_config is not None:
            self._check_memory_layers(self.memory_layers)

    def _check_memory_layers(self, chosen: list[int]) -> None:
        if not chosen:
            raise ValueError("memory_layers is empty; set num_mem_tokens to 0 to switch the memory off")
        if chosen != sorted(set(chosen)) or not all(0 <= layer < self.num_hidden_layers for layer in chosen):
            raise ValueError(f"memory_layers is {chosen}; give ascending numbers below {self.num_hidden_layers}")

    @property
    def num_features(self) -> int:
        """K: features of a key after DPFP."""
        return 2 * self.d_mem * self.nu

    @property
    def layers_with_memory(self) -> list[int]:
        if not self.num_mem_tokens:
            return []
        return list(range(self.num_hidden_layers)) if self.memory_layers is None else self.memory_layers
