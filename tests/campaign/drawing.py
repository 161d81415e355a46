"""Configurations drawn over all fields: changes of runs that are accepted, plausible ones and broken ones.

A change is a field's dotted name and the text of its value, as `--set` takes them. Fields and kinds are read from the
configuration's own dataclasses, so that a new field is drawn without a line here. Values of sizes stay small: a model
that no machine can hold is no question of the program's.
"""

import ast
import dataclasses
import random
import types
import typing
from collections.abc import Mapping
from typing import Any

from moe_jax.configuration import KIND, Kinds
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import EXPERT_KINDS
from moe_jax.experts.parallel.strategies import STRATEGIES
from moe_jax.routing import ROUTERS
from moe_jax.runtime.remat import SAVEABLE
from moe_jax.training.config import TrainConfig
from tests.routing.routers import OPTIONS, K

Change = tuple[str, str]

# What is written for a field of any type.
JUNK = (
    *("None", "True", "''", "'x'", "0", "-1", "3.5", "()", "(0,)", "{}", "[{}]", "{'kind': 'x'}", "{1: 2}", "b'x'"),
    *("1e999", "-1e999", "1e-320", "nan", "1+2j", "'\\ud800'", "'a\\nb'", "'\\x00'", "...", "{'a': {'b': 1}}", "((),)"),
    *(
        "'" + "x" * 500 + "'",
        "(" * 300,
        "None, None",
        "{'kind': None}",
        "{'kind': ['switch']}",
        "{'kind': {}}",
        "set()",
    ),
)
WHOLE = ("1", "2", "3", "4", "8", "16")
REAL = ("0.0", "0.1", "0.5", "0.9", "1.0", "1.5", "2.0", "1e-6", "1e6", "1")
# Whole numbers that only compare, so that they may be large.
COMPARED = {
    *("seed", "eval_every", "log_every", "checkpoint_every", "warmup_steps", "rebalance_every", "group_size", "k"),
    *("window", "max_distance", "train_examples", "batch_size", "eval_batches", "accumulation", "data", "expert"),
    *("fsdp", "tensor", "outer_k", "most", "rounds", "num_groups", "groups_per_token", "groups", "kv_heads"),
}
# Share of the cases that get no broken value: a run costs a thousand times as much as a refusal.
SOUND = 0.04
LARGE = ("2147483648", "4294967295", "4294967296", "-9223372036854775809", str(10**30))
# Values of texts, and of numbers that must be small or fit others.
VALUES: dict[str, tuple[str, ...]] = {
    "name": ("tiny", "a/b", "é", "''"),
    "execution": ("auto", *EXECUTIONS),
    "strategy": ("auto", *STRATEGIES),
    "ffn": tuple(EXPERT_KINDS),
    "tokenizer": ("bytes", "bpe:300", "bpe:257", "bpe:256", "bpe:0300", "bpe:-1", "bpe:100000", "words"),
    "vocab_size": ("257", "258", "260", "300", "1"),
    "num_layers": ("1", "2", "3", "4"),
    "model_dim": ("8", "12", "16", "7"),
    "ffn_dim": ("8", "16", "7"),
    "expert_dim": ("8", "16", "7"),
    "heads": ("1", "2", "4", "3"),
    "head_dim": ("2", "4", "8", "3"),
    "num_experts": ("1", "2", "4", "8", "6"),
    "k": ("1", "2", "4"),
    "group_size": ("8", "16", "32", "64", "5"),
    "sequence_length": ("16", "8", "32", "4", "3", "1"),
    "batch_size": ("4", "8", "2", "16", "1"),
    "validation_fraction": ("0.2", "0.5", "0.01", "0.99", "1e-9"),
    "steps": ("2", "1"),
    "warmup_steps": ("1", "2"),
    "eval_batches": ("1", "2"),
    "learning_rate": ("1e-3", "1e-2", "1e30", "1e-30"),
    "seed": ("0", "1", "4294967295"),
    "num_buckets": ("4", "8", "32", "5"),
    "max_distance": ("16", "128", "33"),
    "counts": ("()", "(1,)", str(tuple(range(300, 0, -1))), str(tuple(range(257)))),
    "iterations": ("1", "2", "100"),
    "target_length": ("8", "16", "20", "4"),
    "sentinels": ("3", "4", "0", "8"),
    "layers": ("(0,)", "(1,)", "(0, 1)", "()", "(1, 0)", "(9,)"),
    "moe_layers": ("(0,)", "(1,)", "(0, 1)", "()", "(0, 0)"),
    "places": ("('feed_forward',)", "('attention',)", "('feed_forward', 'attention')", "()"),
    "remat_saves": ("()", *(repr((name,)) for name in SAVEABLE)),
    "losses": ("{}", "None", "{'balance_loss': 0.1}", "{'z_loss': 0.1}", "{'x': 1}", "{'balance_loss': '1'}"),
    "loss_chunk": ("4", "8", "16", "None", "5"),
    "run": ("teacher", "nowhere", "''", "config.py", "."),
    "text_feature": ("text", "x"),
    "corpus": (
        *(
            "text_files:CORPUS/*.txt",
            "text_files:CORPUS/00.txt",
            "text_files:CORPUS/*,CORPUS/**",
            "text_files:nowhere/*",
        ),
        *("json_lines:PAIRS", "json_lines:CORPUS/*.txt", "tfds:nothing", "tfds:a/b/c/d", "text_files:", "c4"),
        *("text_files:'\\x00'", "text_files:" + "[" * 50, "text_files:~nobody/*", "text_files:" + "x" * 300),
    ),
    "tokenizer_corpus": ("None", "text_files:CORPUS/*.txt", "json_lines:PAIRS", "x"),
    "data": ("1", "2", "8"),
    "fsdp": ("1", "2"),
    "expert": ("1", "2", "4"),
    "tensor": ("1", "2"),
    "accumulation": ("1", "2", "4"),
}


def draw_case(draw: random.Random, bases: Mapping[str, bool]) -> tuple[str, list[Change]]:
    """A run to begin with, one of `bases` (name: whether it has a mixture), and changes of it."""
    base = draw.choice(sorted(bases))
    changes = _router(draw) if bases[base] and draw.random() < 0.7 else []
    sound = draw.random() < SOUND
    for _ in range(draw.randint(1, 4) if sound else draw.randint(0, 2)):
        changes += _change(draw, TrainConfig, "", broken=False)
    for _ in range(0 if sound else draw.randint(1, 3)):
        changes += _change(draw, TrainConfig, "", broken=True)
    return base, changes


def _router(draw: random.Random) -> list[Change]:
    """A router with a number of experts and a capacity that go with it, and perhaps an option."""
    name = draw.choice(sorted(ROUTERS))
    router = ROUTERS[name]
    changes = [("model.moe.router.kind", name), ("model.moe.k", str(K[name]))]
    changes.append(("model.moe.allow_noncausal_router", "True"))
    if not router.drops:
        changes.append(("model.moe.capacity_factor", "None"))
    if router.needs_group_size:
        changes.append(("model.moe.group_size", "16"))
    options = [options for other, options in OPTIONS if other == name]
    if options and draw.random() < 0.5:
        chosen = draw.choice(options)
        changes += [(f"model.moe.router.{field}", repr(value)) for field, value in chosen.items()]
    return changes


def _change(draw: random.Random, kind: type, path: str, broken: bool) -> list[Change]:
    """A change of one field of a dataclass, or of one below it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    if not names:
        return [(f"{path}x", "1")] if broken else []
    if broken and not draw.randint(0, 15):
        return [draw.choice(((f"{path}{names[0]}s", "1"), (f"{path}{names[-1]}.x", "1"), (f"{path}.", "1")))]
    name = draw.choice(names)
    hint, place = hints[name], f"{path}{name}"
    below = _dataclass_in(hint)
    if broken and (below is None or not draw.randint(0, 5)):
        return [(place, _broken(draw, hint, name))]
    union = _kinds_in(hint)
    if union is not None and _inner(hint) is not None:
        chosen = draw.choice(sorted(union.by_name))
        changes = [(f"{place}.{KIND}", chosen)]
        for _ in range(draw.randint(int(broken), 2)):
            changes += _change(draw, union.by_name[chosen], f"{place}.", broken)
        return changes
    if below is not None and not _is_tuple(hint):
        return _change(draw, below, f"{place}.", broken)
    return [(place, repr(_value(draw, hint, name)) if below else _plausible(draw, hint, name))]


def _broken(draw: random.Random, hint: Any, name: str) -> str:
    """The text of a value that is probably wrong."""
    large = LARGE if name in COMPARED or bool in _types(hint) else ()
    typos = tuple(text[:-1] for text in _plain_values(hint, name) if text[:1].isalpha() and len(text) > 3)
    return draw.choice((*JUNK, *large, *typos))


def _plausible(draw: random.Random, hint: Any, name: str) -> str:
    return draw.choice(_plain_values(hint, name))


def _plain_values(hint: Any, name: str) -> tuple[str, ...]:
    """Texts of values of a field that holds no dataclass."""
    found = VALUES.get(name, ())
    for kind in _types(hint):
        if typing.get_origin(kind) is typing.Literal:
            found += tuple(map(str, typing.get_args(kind)))
        elif kind is bool:
            found += ("True", "False")
        elif not found:
            found += {int: WHOLE, float: REAL}.get(kind, ())
    return (*found, "None") if type(None) in typing.get_args(hint) or not found else found


def _value(draw: random.Random, hint: Any, name: str) -> Any:
    """A value that holds dataclasses, as dictionaries and lists."""
    if _is_tuple(hint):
        return [_fields(draw, _dataclass_in(hint)) for _ in range(draw.randint(0, 2))]
    return _fields(draw, _dataclass_in(hint))


def _fields(draw: random.Random, kind: type) -> dict[str, Any]:
    """A dictionary with the fields that a dataclass requires, and some others."""
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {}
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required or not draw.randint(0, 3):
            hint = hints[field.name]
            union = _kinds_in(hint)
            if union is not None:
                values[field.name] = draw.choice(sorted(union.by_name))
            elif _dataclass_in(hint):
                values[field.name] = _value(draw, hint, field.name)
            else:
                values[field.name] = _read(_plausible(draw, hint, field.name))
    return values


def _read(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _types(hint: Any) -> tuple[Any, ...]:
    """The types of a field without None."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(one for one in typing.get_args(hint) if one is not type(None))
    return (hint,)


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(kind) is tuple for kind in _types(hint))


def _inner(hint: Any) -> Any:
    """The annotated type of a field that holds one of several kinds itself, and no tuple of them."""
    return next((kind for kind in _types(hint) if typing.get_origin(kind) is typing.Annotated), None)


def _kinds_in(hint: Any) -> Kinds | None:
    annotated = _inner(hint)
    if annotated is None:
        return None
    return next((extra for extra in annotated.__metadata__ if isinstance(extra, Kinds)), None)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a field holds, itself or in a tuple; the base of its kinds where there are several."""
    for kind in _types(hint):
        if typing.get_origin(kind) is typing.Annotated:
            return typing.get_args(kind)[0]
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        if dataclasses.is_dataclass(inner):
            return inner
    return None
