"""The outcomes of a part of the campaign: cases counted by kind, and failures with their smallest inputs."""

import collections
import dataclasses
import re
import traceback
from pathlib import Path

LONGEST_LINE = 1000
"""Characters of a line of error; a value that it shows is cut at 200."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """One case that went wrong.

    Attributes:
      kind: what went wrong, the same for cases that fail in one place.
      case: the input, as a person can give it again.
      size: how large the input is.
    """

    kind: str
    case: str
    size: int = 0


@dataclasses.dataclass
class Part:
    """One part of the campaign.

    Attributes:
      title: its name and what it does.
      counts: cases by outcome.
      failures: those that went wrong.
      seconds: how long it took.
    """

    title: str
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    failures: list[Failure] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def add(self, outcome: str, problem: str | None = None, case: str = "") -> None:
        """Counts a case; with a problem it has failed."""
        if problem is None:
            self.counts[outcome] += 1
        else:
            self.fail(Failure(f"{outcome}: {problem}", case, len(case)))

    def fail(self, failure: Failure) -> None:
        self.counts["failed"] += 1
        self.failures.append(failure)

    def lines(self) -> list[str]:
        """The summary: counts, then each kind of failure with the smallest of its inputs."""
        total = sum(self.counts.values())
        lines = [self.title, f"  {total:,} cases in {self.seconds:,.0f} s"]
        lines += [f"  {count:>7,}  {outcome}" for outcome, count in self.counts.most_common()]
        kinds = collections.defaultdict(list)
        for failure in self.failures:
            kinds[failure.kind].append(failure)
        for kind, failures in kinds.items():
            smallest = min(failures, key=lambda failure: failure.size)
            lines += [f"  FAILED {len(failures)} times: {kind}", f"    {smallest.case}"]
        return lines


def problem_of(text: str) -> str | None:
    """Says why a command's output is no single line of error; None if it is one."""
    lines = text.splitlines()
    if "Traceback (most recent call last)" in text:
        return "a traceback"
    if len(lines) != 1 or "\r" in text:
        return f"{len(lines)} lines for one"
    return f"a line of {len(text):,} characters" if len(text) > LONGEST_LINE else None


def place_of(error: BaseException) -> str:
    """Names an error by its type, the last place of our code that it passed, and its message without numbers."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/moe_jax/" in frame.filename and "site-packages" not in frame.filename]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "outside moe_jax"
    message = re.sub(r"\d+", "N", " ".join(str(error).split()))[:160]
    return f"{type(error).__name__} at {place}: {message}"
