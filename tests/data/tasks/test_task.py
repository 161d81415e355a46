"""Kinds of tasks: what each must say of itself."""

from moe_jax.data.tasks import TASKS


def test_every_kind_is_described_and_has_a_title_of_its_own():
    kinds = TASKS.by_name.values()
    for kind in kinds:
        assert kind.__doc__
        assert not kind.__doc__.startswith(f"{kind.__name__}("), "a dataclass without a docstring of its own"
    assert len({kind.title for kind in kinds}) == len(kinds)


def test_who_sees_later_tokens():
    assert [name for name, kind in TASKS.by_name.items() if not kind.causal] == ["masked"]
