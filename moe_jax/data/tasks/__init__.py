"""Tasks: what a model learns from a corpus. A new task is one file and one line here."""

from typing import Annotated

from moe_jax.configuration import Kinds
from moe_jax.data.tasks.causal import Causal
from moe_jax.data.tasks.masked import Masked
from moe_jax.data.tasks.span_corruption import SpanCorruption
from moe_jax.data.tasks.task import Examples, Task
from moe_jax.data.tasks.text_to_text import TextToText

TASKS = Kinds(
    {
        "causal": Causal,
        "masked": Masked,
        "span_corruption": SpanCorruption,
        "text_to_text": TextToText,
    }
)
AnyTask = Annotated[Task, TASKS]

__all__ = ["TASKS", "AnyTask", "Causal", "Examples", "Masked", "SpanCorruption", "Task", "TextToText"]
