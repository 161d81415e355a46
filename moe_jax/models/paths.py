"""Paths: the identity of a layer or a mixture, and where a tree of the model has what belongs to it.

A tree (parameters, router state, metrics) has the layers of a stack as `layer_I`; where layers are scanned, as
`segment_S` and in it `block_B`, whose arrays have a leading axis over the segment's repeats. A model with two stacks
has these in `encoder` and `decoder`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.layers.attention.grouped_query import KEY_VALUE_MOE, QUERY_MOE
from moe_jax.models.config import ModelConfig
from moe_jax.models.layer_spec import MOE

Tree = dict[str, Any]

ENCODER, DECODER = "encoder", "decoder"
# The mixtures of a layer, and what the name of each begins with in metrics.
MIXTURES = {MOE: "", QUERY_MOE: "query_", KEY_VALUE_MOE: "key_value_"}


class LayerPath(NamedTuple):
    """Identity of a layer.

    Attributes:
      stack: `encoder` or `decoder` of a model that has both, else "".
      index: of the layer in its stack.
    """

    stack: str
    index: int

    @property
    def name(self) -> str:
        """Its name in metrics, for example `layer_3` or `encoder_layer_3`."""
        return f"{self.stack}_layer_{self.index}" if self.stack else f"layer_{self.index}"


class MixturePath(NamedTuple):
    """Identity of a mixture.

    Attributes:
      layer: the layer that it is in.
      part: its name there, one of MIXTURES.
    """

    layer: LayerPath
    part: str

    @property
    def name(self) -> str:
        """Its name in metrics, for example `layer_3` or `encoder_query_layer_3`."""
        stack, index = self.layer
        return f"{stack}{'_' * bool(stack)}{MIXTURES[self.part]}layer_{index}"


def layer_paths(config: ModelConfig) -> list[LayerPath]:
    """Lists the layers of a model, the encoder's first."""
    stacks = (ENCODER, DECODER) if len(config.stacks) == 2 else ("",)
    return [LayerPath(stack, index) for stack in stacks for index in range(config.num_layers)]


def map_stacks(function: Callable[[Tree], Tree], tree: Tree, config: ModelConfig) -> Tree:
    """Applies `function` to the part of a tree that holds the layers of a stack, for each stack."""
    if len(config.stacks) == 1:
        return function(tree)
    return {name: function(part) if name in (ENCODER, DECODER) else part for name, part in tree.items()}


def layer_of(tree: Tree, path: LayerPath, config: ModelConfig) -> Tree:
    """Returns what a tree holds of a layer, {} where it holds nothing."""
    stack = tree.get(path.stack, {}) if path.stack else tree
    if not config.scan_layers:
        return stack.get(f"layer_{path.index}", {})
    for number, segment in enumerate(config.segments):
        repeat, block = divmod(path.index - segment.first, len(segment.pattern))
        if 0 <= repeat < segment.repeats:
            scanned = stack.get(f"segment_{number}", {}).get(f"block_{block}", {})
            return jax.tree.map(lambda x, r=repeat: x[r], scanned)
    raise IndexError(f"layer {path.index} is not one of the model's {config.num_layers}")


def mixtures_of(tree: Tree, config: ModelConfig) -> Iterator[tuple[MixturePath, Any]]:
    """Yields what a tree holds of each mixture."""
    for path in layer_paths(config):
        layer = layer_of(tree, path, config)
        for part in MIXTURES:
            if part in layer:
                yield MixturePath(path, part), layer[part]


def layers_at(names: Sequence[str], config: ModelConfig) -> list[LayerPath]:
    """Returns the layers whose values lie at a path of a tree: one, or where layers are scanned one for each repeat.

    Args:
      names: keys from the root of the tree, to the layer or into it.
      config: of the model.
    """
    stack = names[0] if names[0] in (ENCODER, DECODER) else ""
    number = int(names[bool(stack)].rpartition("_")[2])
    if not config.scan_layers:
        return [LayerPath(stack, number)]
    block = int(names[bool(stack) + 1].rpartition("_")[2])
    return [LayerPath(stack, index) for index in config.segments[number].layers(block)]


def stack_layers(tree: Tree, config: ModelConfig) -> Tree:
    """Turns a tree with layers one by one into the tree of the same model with its layers scanned."""

    def stacked(tree: Tree) -> Tree:
        result = {name: part for name, part in tree.items() if not name.startswith("layer_")}
        for number, segment in enumerate(config.segments):
            blocks = {}
            for block in range(len(segment.pattern)):
                layers = [tree.get(f"layer_{index}") for index in segment.layers(block)]
                if layers[0] is not None:
                    blocks[f"block_{block}"] = jax.tree.map(lambda *xs: jnp.stack(xs), *layers)
            if blocks:
                result[f"segment_{number}"] = blocks
        return result

    return map_stacks(stacked, tree, config)


def unstack_layers(tree: Tree, config: ModelConfig) -> Tree:
    """Inverts `stack_layers`."""

    def unstacked(tree: Tree) -> Tree:
        result = {name: part for name, part in tree.items() if not name.startswith("segment_")}
        for number, segment in enumerate(config.segments):
            for name, block in tree.get(f"segment_{number}", {}).items():
                for repeat, index in enumerate(segment.layers(int(name.removeprefix("block_")))):
                    result[f"layer_{index}"] = jax.tree.map(lambda x, r=repeat: x[r], block)
        return result

    return map_stacks(unstacked, tree, config)
