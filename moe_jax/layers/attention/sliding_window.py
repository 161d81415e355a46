"""Sliding-window attention: each token sees itself and the tokens before it, up to a distance."""

import dataclasses

from moe_jax.configuration import require
from moe_jax.layers.attention.grouped_query import GroupedQuery


@dataclasses.dataclass(frozen=True)
class SlidingWindow(GroupedQuery):
    """Grouped-query attention within a window (Beltagy et al. 2020, section 3.1; Mistral, gpt-oss).

    Attributes:
      window: tokens that a token sees at most, itself included; without causality as many to either side.
    """

    window: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window >= 1, "window", self.window, "an integer of at least 1")
