"""What a run gives, also when it does not end well."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
      curve: one entry for each evaluation: step, tokens, seconds (of training alone), validation_loss (nats per token),
        bits_per_byte, routing ({metric: number}) and load ({"layer_i": [share of each expert]}), both {} if dense;
        training (what of routing the training step logged, {} if it logged nothing); scores, where the task has any.
      corpus_name: what it was trained on.
      corpus_digest: and exactly which.
      seconds: of training, without compilation, evaluation and checkpoints.
      compile_seconds: of compiling the training and the evaluation step, in the session that finished the run; next to
        nothing if it was given them.
    """

    curve: list[dict[str, Any]]
    corpus_name: str
    corpus_digest: str
    seconds: float
    compile_seconds: float


class DivergenceError(ArithmeticError):
    """Training left the finite numbers, and to go on would only be to wait.

    Attributes:
      result: what there was until then; None before a run has any.
    """

    result: RunResult | None = None
