"""The protocol of studies that decide: what a run must have, so that a difference of models shows over seeds.

Models that have seen few tokens, learning rates that have not come down and losses of little text leave differences
that three or six seeds cannot tell from 0.
"""

from moe_jax.accounting.parameters import count_parameters
from moe_jax.data.pipeline import TextData
from moe_jax.training.config import TrainConfig

TOKENS_PER_PARAMETER = 100
SCORED_BYTES = 400_000


def departures(config: TrainConfig, data: TextData) -> list[str]:
    """Lists where a run departs from the protocol, a clause each; [] if nowhere.

    Args:
      config: the run, with all of its steps.
      data: its text, of `load_text`.
    """
    examples, optimizer, found = config.steps * config.data.batch_size, config.optimizer, []
    if not optimizer.decay_share and (optimizer.schedule != "cosine" or optimizer.final_fraction):
        found.append("its learning rate does not fall to 0")
    share = examples * config.data.tokens_per_example / count_parameters(config.model).active
    if share < TOKENS_PER_PARAMETER:
        found.append(f"it sees {share:.1f} tokens per active parameter, not {TOKENS_PER_PARAMETER} or more")
    if examples > len(data.train):
        found.append(f"it reads its text {examples / len(data.train):.1f} times, not once at most")
    batches = data.validation_batches(None if config.eval_all_at_end else config.eval_batches)
    scored = round(sum(batch["loss_mask"].sum() for batch in batches) * data.bytes_per_target(batches))
    if not config.eval_all_at_end or scored < SCORED_BYTES:
        text = "all of its validation text" if config.eval_all_at_end else "a part of its validation text"
        found.append(f"its last evaluation scores {text}, {scored:,} bytes, not all and {SCORED_BYTES:,} or more")
    return found
