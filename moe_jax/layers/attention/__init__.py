"""Attention: one file for each kind."""

from typing import Annotated

from moe_jax.configuration import Kinds
from moe_jax.layers.attention.grouped_query import GroupedQuery
from moe_jax.layers.attention.sliding_window import SlidingWindow

# Where kinds of attention are named: a new one is one file and one line here.
ATTENTIONS: dict[str, type[GroupedQuery]] = {"grouped_query": GroupedQuery, "sliding_window": SlidingWindow}

AnyAttention = Annotated[GroupedQuery, Kinds(ATTENTIONS, default="grouped_query")]

__all__ = ["ATTENTIONS", "AnyAttention", "GroupedQuery", "SlidingWindow"]
