"""Text files and files of JSON lines, sound and broken: accepted with the right text, or refused in one line."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from tests.campaign.outcomes import Failure, Part, place_of, problem_of

Check = Callable[[Path, Any], tuple[str, str | None]]
FILES = 3000
"""Text files drawn, and as many files of pairs and of questions."""
HUGE = 20_000_000
"""Characters of the one huge line."""
ENCODINGS = (
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"),
    *("latin-1", "cp1252", "utf-7", "shift-jis", "cp037"),
)
# Text as people have it: letters of one byte and of several, and whatever could end a line or begin a file.
MARKS = "\r\n\t\v\f\x1c\x1d\x1e\x85\u2028\u2029\ufeff\ufffe\ufffd\x1a\x7f\u200b\U0001f600\U0010ffff"
PIECES = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.text(st.sampled_from("abc é\n" + MARKS), max_size=40),
    st.sampled_from(["\r\n" * 3, "\ufeff", "\0", "a" * 2000, "", "line\nline\n\nparagraph\n"]),
)
TEXTS = st.lists(PIECES, max_size=6).map("".join)
NAMES = st.one_of(
    st.sampled_from(
        ["a.txt", "[a].txt", "a,b.txt", "a b.txt", "a\nb.txt", "*.txt", "~.txt", "ü.txt", "$HOME", "a:b", "-"]
    ),
    st.text(st.sampled_from("ab[]*?,{}~!\n\r\t 'é\\$%:"), min_size=1, max_size=12),
)
# A value that JSON can hold, or that only Python's JSON does.
VALUES = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
        st.sampled_from(["\ud800", "\udc00a", "\U0001f600", "\0", "\u2028", "é" * 500, 10**400, "a\nb", "\x1b[31m"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
BROKEN = (
    *(
        b"",
        b" ",
        b"{",
        b"}",
        b"nul",
        b'{"inputs": "a", "targets": "b"',
        b'{"inputs": "a" "targets": "b"}',
        b"\x00",
        b"\xff\xfe",
    ),
    *(
        b'{"inputs": "\xe9", "targets": "b"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 5000,
        b"NaN",
        b"-Infinity",
        b"'a'",
    ),
    *(b'{"inputs": "a\\ud800", "targets": "b"}', b'{"inputs": "a\tb", "targets": "b"}', b"\x1f\x8b\x08\x00", b"1e999"),
    *(
        b'{"inputs": "a", "inputs": "c", "targets": "b"}',
        b'{"inputs": "a", "targets": "b"} {}',
        b"// a comment",
        b"\x0c",
    ),
    *(
        b'{"inputs": "a\\u0000", "targets": "b"}',
        b"\xef\xbb\xbf{}",
        b'{"context": "a", "target": ""}',
        b"\xc2\x85",
        b'"' + b"x" * 10**6,
    ),
)


@st.composite
def contents(draw: Callable[..., Any]) -> tuple[str | None, bytes]:
    """A text and its bytes in some encoding; None for bytes that were made without a text."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return None, draw(st.binary(max_size=200))
    text, encoding = draw(TEXTS), "utf-8" if how > 5 else draw(st.sampled_from(ENCODINGS))
    content = text.encode(encoding, errors="replace")
    if how == 1 and content:
        return None, content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=3))
    return text, content


@st.composite
def json_files(draw: Callable[..., Any]) -> bytes:
    """Lines of JSON, some of them records that a reader wants, some broken, in some encoding, with some line end."""
    text = st.one_of(st.text(max_size=20), st.sampled_from(["a", "\ud800", "\u2028", "a\nb", "\x85"]))
    pair = st.fixed_dictionaries({"inputs": text, "targets": text})
    question = st.one_of(
        st.fixed_dictionaries({"context": text, "target": text}),
        st.fixed_dictionaries({"context": text, "choices": st.lists(text, max_size=4), "answer": st.integers(-1, 4)}),
        st.dictionaries(st.sampled_from(["context", "choices", "answer", "target", "a\nb", "x" * 300]), VALUES),
    )
    record = st.one_of(pair, pair, question, question, VALUES)
    lines = []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.integers(0, 3)):
            lines.append(json.dumps(draw(record), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
        else:
            lines.append(draw(st.sampled_from(BROKEN)))
    content = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r"])).join(lines)
    content += draw(st.sampled_from([b"\n", b"", b"\r\n", b"\x1a"]))
    return draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"])) + content


def run(folder: Path, seed: int) -> Part:
    """Reads files as corpora, as pairs and as questions."""
    part = Part("Text: files in every encoding, and JSON lines broken in every way")
    started = time.time()
    for check, strategy in (
        (check_text, st.tuples(NAMES, contents())),
        (check_pairs, json_files()),
        (check_questions, json_files()),
    ):
        draw_cases(part, folder / "case", check, strategy, seed)
    for name, make in SPECIAL.items():
        with_case(part, folder / "case", lambda place, make: check_special(place, make), make, name)
    part.seconds = time.time() - started
    return part


def draw_cases(part: Part, place: Path, check: Check, strategy: st.SearchStrategy, seed: int) -> None:
    """Checks FILES cases."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=FILES,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def each(case: Any) -> None:
        with_case(part, place, check, case)

    each()


def with_case(part: Part, place: Path, check: Check, case: Any, name: str | None = None) -> None:
    """Checks one case in an empty folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    shown = name or repr(case)
    try:
        outcome, problem = check(place, case)
    except (Exception, RecursionError) as error:
        outcome, problem = "traceback", place_of(error)
    if problem is None:
        part.counts[outcome] += 1
    else:
        part.fail(Failure(f"{outcome}: {problem}", shown[:600], len(shown)))


def expected_text(content: bytes) -> str | None:
    """Python's own reading: UTF-8, with or without a mark; None for what is to be refused, NUL included."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = text.removeprefix("\ufeff")
    return None if "\0" in text else text


def refused(error: Exception) -> tuple[str, str | None]:
    return "refused in one line", problem_of(str(error))


def check_text(place: Path, case: tuple[str, tuple[str | None, bytes]]) -> tuple[str, str | None]:
    """A file of this name and content, named by its path, beside another that is sound."""
    from moe_jax.configuration import ConfigError
    from moe_jax.data.config import DataConfig
    from moe_jax.data.corpora import load_corpus

    name, (_, content) = case
    path = place / name.replace("/", "-")
    path.write_bytes(content)
    expected = expected_text(content)
    try:
        corpus = load_corpus(DataConfig(corpus=f"text_files:{path}", validation_fraction=0.5))
        found = "".join(text for split in ("train", "validation") for text in corpus.documents(split))
    except ConfigError as error:
        # One character cannot be divided into two splits.
        sound = expected is not None and len(expected) > 1
        return "refused in one line", "a sound text is refused: " + str(error)[-80:] if sound else refused(error)[1]
    problem = None if found == expected else "accepted with another text" if expected is not None else "accepted"
    return "accepted with the right text", problem


def lines_expected(content: bytes) -> list[Any] | None:
    """The values of the lines by Python's own reader; None where a line is broken."""
    try:
        lines = content.decode("utf-8").removeprefix("\ufeff").split("\n")
        return [json.loads(line) for line in lines if line.strip(" \t\r\v\f")]
    except (ValueError, RecursionError):
        return None


def is_text(value: Any) -> bool:
    """A text that UTF-8 can encode."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def check_pairs(place: Path, content: bytes) -> tuple[str, str | None]:
    """The pairs of a file, beside one that has pairs enough for both splits."""
    from moe_jax.configuration import ConfigError
    from moe_jax.data.config import DataConfig
    from moe_jax.data.pairs import load_pairs
    from moe_jax.data.tasks import TextToText
    from tests.campaign.environment import write_pairs

    (place / "fuzzed.jsonl").write_bytes(content)
    write_pairs(place / "sound.jsonl")
    values = lines_expected(content)
    if values is not None and not all(
        isinstance(value, dict) and all(is_text(value.get(name)) for name in ("inputs", "targets")) for value in values
    ):
        values = None
    config = DataConfig(corpus=f"json_lines:{place}/*.jsonl", task=TextToText(8), validation_fraction=0.5)
    return compare(
        values and {(value["inputs"], value["targets"]) for value in values},
        values is not None,
        lambda: (
            {(pair.inputs, pair.targets) for pairs in load_pairs(config).splits.values() for pair in pairs}
            - {(f"{i} and {i % 7}", f"sum {i + i % 7}") for i in range(60)}
        ),
        ConfigError,
    )


def check_questions(place: Path, content: bytes) -> tuple[str, str | None]:
    """The questions of a file."""
    from moe_jax.configuration import ConfigError
    from moe_jax.evaluation.examples import read_examples

    path = place / "fuzzed.jsonl"
    path.write_bytes(content)
    values = lines_expected(content)
    questions = None if values is None else [question_of(value) for value in values]
    sound = bool(questions) and None not in questions and len({len(choices) > 1 for _, choices, _ in questions}) == 1
    return compare(
        questions,
        sound,
        lambda: [(one.context, one.choices, one.answer) for one in read_examples(str(path))],
        ConfigError,
    )


def question_of(value: Any) -> tuple[str, tuple[str, ...], int] | None:
    """The question that a record is, None if it is none."""
    if not isinstance(value, dict) or not is_text(value.get("context")):
        return None
    if ("target" in value) == ("choices" in value):
        return None
    if "target" in value:
        return (value["context"], (value["target"],), 0) if value["target"] and is_text(value["target"]) else None
    choices, answer = value["choices"], value.get("answer")
    fits = isinstance(choices, list) and len(choices) > 1 and all(one and is_text(one) for one in choices)
    indexes = isinstance(answer, int) and not isinstance(answer, bool)
    return (value["context"], tuple(choices), answer) if fits and indexes and 0 <= answer < len(choices) else None


def compare(expected: Any, sound: bool, read: Callable[[], Any], kind: type[Exception]) -> tuple[str, str | None]:
    try:
        found = read()
    except kind as error:
        problem = f"a sound file is refused: {str(error)[-200:]}" if sound else refused(error)[1]
        return "refused in one line", problem
    if not sound:
        return "accepted with the right text", "a broken file is accepted"
    return "accepted with the right text", None if found == (expected or type(found)()) else f"reads {found!r}"[:300]


def check_special(place: Path, make: Callable[[Path], tuple[str, str | None]]) -> tuple[str, str | None]:
    """A corpus of a special kind, read whole by the pipeline; its text where it is to be accepted."""
    from moe_jax.configuration import ConfigError
    from moe_jax.data.config import DataConfig
    from moe_jax.data.pipeline import load_text

    corpus, expected = make(place)
    try:
        data = load_text(
            DataConfig(corpus=corpus, validation_fraction=0.5, sequence_length=8, batch_size=1), place / "c"
        )
    except ConfigError as error:
        problem = refused(error)[1] if expected is None else f"a sound text is refused: {str(error)[-200:]}"
        return "refused in one line", problem
    if expected is None:
        return "accepted with the right text", "accepted"
    streams = [example.stream for example in (data.train, data.validation)]
    text = b"".join(bytes(stream[stream < 256].astype("uint8")) for stream in streams).decode()
    return "accepted with the right text", None if text == expected else "another text"


def one_file(name: str | bytes, content: bytes, expected: str | None) -> Callable[[Path], tuple[str, str | None]]:
    def make(place: Path) -> tuple[str, str | None]:
        path = place / (name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
        path.write_bytes(content)
        return f"text_files:{path}", expected

    return make


def huge_line(place: Path) -> tuple[str, str | None]:
    (place / "a.txt").write_bytes(b"word " * (HUGE // 5))
    return f"text_files:{place}/a.txt", "word " * (HUGE // 5)


def folder_for_file(place: Path) -> tuple[str, str | None]:
    (place / "a.txt").mkdir()
    return f"text_files:{place}/a.txt", None


def link(target: str) -> Callable[[Path], tuple[str, str | None]]:
    def make(place: Path) -> tuple[str, str | None]:
        (place / "a.txt").symlink_to(target)
        return f"text_files:{place}/a.txt", None

    return make


def unreadable(place: Path) -> tuple[str, str | None]:
    """A file that even root cannot read: the memory of this process at address 0."""
    return "text_files:/proc/self/mem", None


LINES = "".join(f"line {i}\n" for i in range(50))
SPECIAL: dict[str, Callable[[Path], tuple[str, str | None]]] = {
    "one huge line": huge_line,
    "a folder in place of a file": folder_for_file,
    "a link to nothing": link("nowhere"),
    "a link to itself": link("a.txt"),
    "a file that cannot be read": unreadable,
    "a name that is not UTF-8": one_file(b"caf\xe9.txt", LINES.encode(), LINES),
    "a name with a line end": one_file("a\nb.txt", LINES.encode(), LINES),
    "a name with a line end, not UTF-8": one_file("a\nb.txt", b"\xff", None),
    "a name with a tab": one_file("a\tb.txt", LINES.encode(), LINES),
    "a long name": one_file("x" * 250, LINES.encode(), LINES),
    "a longer name": lambda place: (f"text_files:{place}/" + "x" * 300, None),
    "a path with NUL": lambda place: (f"text_files:{place}/a\0b", None),
    "a compressed file": one_file("a.txt.gz", b"\x1f\x8b\x08\x00" + random.Random(0).randbytes(500), None),
    "nothing": one_file("a.txt", b"", None),
    "only a mark": one_file("a.txt", b"\xef\xbb\xbf", None),
    "two marks": one_file("a.txt", b"\xef\xbb\xbf" * 2 + LINES.encode(), "\ufeff" + LINES),
    "half a character at the end": one_file("a.txt", LINES.encode() + "é".encode()[:1], None),
    "half a surrogate pair": one_file("a.txt", LINES.encode() + "\ud800".encode("utf-8", "surrogatepass"), None),
    "lines that end as on a Mac of 1995": one_file(
        "a.txt", LINES.replace("\n", "\r").encode(), LINES.replace("\n", "\r")
    ),
}
