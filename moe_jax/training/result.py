"""The result of a run, and the error of a run that diverges."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
      curve: one entry for each evaluation: step, tokens, seconds (of training alone), validation_loss (nats per token),
        bits_per_byte, routing ({metric: number}) and load ({"layer_i": [share of each expert]}), both {} if dense;
        training (those metrics of routing that the training step logged, {} if it logged none); scores, if the task
        has any.
      corpus_name: name of the corpus.
      corpus_digest: digest of the corpus as tokens, see `moe_jax.data.pipeline.token_digest`.
      seconds: seconds of training, without compilation, evaluation and checkpoints.
      compile_seconds: seconds of compiling the training and the evaluation step, in the session that finished the run;
        near 0 if both came from a cache.
    """

    curve: list[dict[str, Any]]
    corpus_name: str
    corpus_digest: str
    seconds: float
    compile_seconds: float


class DivergenceError(ArithmeticError):
    """Raised when the loss or the gradient norm is NaN or infinite.

    Attributes:
      result: the run up to its last evaluation; None if the error was not raised by a run.
    """

    result: RunResult | None = None
