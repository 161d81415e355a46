"""The studies of the Switch Transformer paper, each a table with the paper's figures beside ours (Fedus et al. 2021).

    python -m experiments.switch_transformer architectures                  # one study: Table 1
    python -m experiments.switch_transformer                                # all of them
    python -m experiments.switch_transformer exploration --preset quick     # for a look, minutes
    python -m experiments.switch_transformer experts --preset gpu           # larger, bfloat16, on one GPU
    python -m experiments.switch_transformer experts --preset gpu --models dense switch-64 --set steps=5000

Interrupted, the same command goes on where it stopped. A model that several studies have is trained once, and so are
those that others start from or learn from. Each seed fixes the order of the data and the start of all that models
share, so models are compared pair by pair.
"""

import sys

from experiments.switch_transformer.studies import STUDIES
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.run import run_studies

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(run_studies("switch_transformer", __doc__, STUDIES))
