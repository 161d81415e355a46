"""The ways of running experts on one device, by name."""

from moe_jax.experts.dropless import DROPLESS
from moe_jax.experts.execution import Execution
from moe_jax.experts.one_hot import ONE_HOT
from moe_jax.experts.oracle import ORACLE
from moe_jax.experts.padded import PADDED

EXECUTIONS: dict[str, Execution] = {
    "oracle": ORACLE,
    "one_hot": ONE_HOT,
    "padded": PADDED,
    "dropless": DROPLESS,
}
