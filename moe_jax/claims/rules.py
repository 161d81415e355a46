"""The rules by the name that a claim's file gives as `kind` below `[rule]`. A new rule is a file, and a line here."""

from moe_jax.claims.comparison_rules import Difference, Equal, Order, Pairs
from moe_jax.claims.gain_rules import Monotone, ShareOfGain, SpeedUp
from moe_jax.claims.seed_rules import Diverges, Spread
from moe_jax.configuration import Kinds

RULES = Kinds(
    {
        "difference": Difference,
        "equal": Equal,
        "pairs": Pairs,
        "order": Order,
        "monotone": Monotone,
        "speed_up": SpeedUp,
        "share_of_gain": ShareOfGain,
        "spread": Spread,
        "diverges": Diverges,
    }
)
