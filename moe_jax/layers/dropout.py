"""Dropout (Srivastava et al. 2014) of the hidden values of networks; elsewhere it is Flax's own."""

import dataclasses

import flax.linen as nn

from moe_jax.experts.ffn import FFNKind

DROPOUT = "dropout"
"""The stream of what dropout draws."""


def with_dropout(kind: FFNKind, rate: float) -> FFNKind:
    """Returns `kind` with a share `rate` of its hidden values set to 0, drawn by the module that runs it.

    Values drop out independently of the order of rows.
    """
    if rate == 0:
        return kind
    dropout = nn.Dropout(rate, deterministic=False)
    return dataclasses.replace(kind, unit=lambda *first: dropout(kind.unit(*first)))
