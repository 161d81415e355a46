"""The interface between a router and the layer that carries its decision out.

G groups, S tokens of a group, R rows that experts run, D model width, O width of results, E experts.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Array, Bool, Float

from moe_jax.routing.statistics import Metrics


class Decision:
    """A router's decision: `enter` makes rows of tokens, experts run the rows, `leave` makes results of tokens.

    Attributes:
      num_experts: E.
      combines: how a layer may apply the weights of `assignment`; see `moe_jax.experts.apply.Combine`.
    """

    num_experts: int
    combines: ClassVar[tuple[str, ...]] = ("output", "input", "mix")

    def enter(self, x: Float[Array, "G S D"]) -> Float[Array, "G R D"]:
        """Makes the rows that experts run of the tokens `x`, in their type."""
        raise NotImplementedError

    def assignment(self) -> Any:
        """Returns the `Assignment` of rows to experts."""
        raise NotImplementedError

    def leave(self, y: Float[Array, "G R O"]) -> Float[Array, "G S O"]:
        """Makes the tokens' results of the rows' results `y`, in their type."""
        raise NotImplementedError

    def combine_weights(self) -> Float[Array, "G S E"]:
        """Returns the weight of each expert in each token's result; 0 where the expert does not run the token."""
        raise NotImplementedError

    def dispatch_mask(self) -> Bool[Array, "G S E"]:
        """Says which expert runs which token."""
        raise NotImplementedError

    def dropped_mask(self) -> Bool[Array, "G S E"]:
        """Says which expert was asked to run a token and does not."""
        raise NotImplementedError

    def describe(self, group: int) -> str:
        """Describes one group in a few words: capacity and drops."""
        raise NotImplementedError

    def rounded(self, rounding: Callable[[Float[Array, "..."]], Float[Array, "..."]]) -> "Decision":
        """Returns the decision with its weights rounded by `rounding`."""
        raise NotImplementedError

    def metrics(self, token_valid: Bool[Array, "G S"], k: int) -> Metrics:
        """Returns the metrics that describe the decision alone; see `moe_jax.routing.metrics`.

        Args:
          token_valid: false for padding.
          k: K, the experts per token that the layer asks for.
        """
        raise NotImplementedError
