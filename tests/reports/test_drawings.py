import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.configuration import ConfigError
from moe_jax.reports.drawings import draw_assignment, draw_assignments
from moe_jax.routing.expert_choice import expert_choice
from moe_jax.routing.gshard import gshard
from moe_jax.routing.soft_moe import Slots
from moe_jax.routing.switch import switch

GROUPS, TOKENS, EXPERTS, CAPACITY = 2, 12, 4, 3
VALID = jnp.arange(TOKENS)[None] < jnp.array([TOKENS, TOKENS - 2])[:, None]


def decisions():
    # Leaning towards the first experts, so that their seats run out.
    lean = jnp.array([2.0, 1.0, 0.0, 0.0])
    logits = jax.random.normal(jax.random.key(0), (GROUPS, TOKENS, EXPERTS)) + lean[None, None]
    return {
        "switch": switch(logits, VALID, CAPACITY),
        "gshard": gshard(logits, VALID, CAPACITY),
        "expert_choice": expert_choice(logits, VALID, CAPACITY),
    }


@pytest.fixture(params=["switch", "gshard", "expert_choice"])
def assignment(request):
    return decisions()[request.param]


@pytest.mark.parametrize("group", range(GROUPS))
def test_cells_are_the_combine_weights_and_crosses_the_dropped_requests(assignment, group):
    left = draw_assignment(assignment, group).axes[0]
    mesh, crosses = left.collections
    drawn = mesh.get_array()
    np.testing.assert_array_equal(~np.ma.getmaskarray(drawn), assignment.dispatch_mask()[group].T)
    np.testing.assert_array_equal(drawn.filled(0.0), assignment.combine_weights()[group].T)
    lost = np.asarray(assignment.requested[group] & ~assignment.kept[group])
    expected = np.stack([assignment.token[group], assignment.expert[group]], axis=-1)[lost]
    assert sorted(map(tuple, np.asarray(crosses.get_offsets()).tolist())) == sorted(map(tuple, expected.tolist()))


def test_token_choice_drops_and_expert_choice_does_not():
    crosses = {name: len(draw_assignment(a).axes[0].collections[1].get_offsets()) for name, a in decisions().items()}
    assert crosses["switch"] > 0
    assert crosses["gshard"] > crosses["switch"]
    assert crosses["expert_choice"] == 0


def test_bars_are_requests_split_at_the_capacity(assignment):
    right = draw_assignment(assignment).axes[1]
    kept, dropped = ([bar.get_width() for bar in bars] for bars in right.containers)
    assert max(kept) <= CAPACITY
    assert sum(kept) == int(assignment.kept[0].sum())
    requests = np.add(kept, dropped)
    one_group = jax.tree.map(lambda x: x[:1], assignment)
    load = np.asarray(one_group.metrics(VALID[:1], 2)["load"].value)
    np.testing.assert_allclose(requests / requests.sum(), load, rtol=1e-6)
    assert [bar.get_x() for bar in right.containers[1]] == kept
    (line,) = right.lines
    assert set(line.get_xdata()) == {CAPACITY}


def test_labels_show_blanks_and_take_dollars_as_they_are(tmp_path):
    labels = ["$x", "a b", "\n", "\t", "\\frac{$", "_^", *"abcdef"]
    figure = draw_assignment(decisions()["switch"], labels=labels)
    texts = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert texts[:6] == ["$x", "a·b", "↵", "⇥", "\\frac{$", "_^"]
    figure.savefig(tmp_path / "drawn.png")


def test_tokens_are_numbered_without_labels():
    texts = [text.get_text() for text in draw_assignment(decisions()["switch"]).axes[0].get_xticklabels()]
    assert texts == [str(i) for i in range(TOKENS)]


def test_bad_arguments_are_named():
    assignment = decisions()["switch"]
    with pytest.raises(ConfigError, match="group is 2; accepted: 0 to 1"):
        draw_assignment(assignment, group=GROUPS)
    with pytest.raises(ConfigError, match=r"labels is \[.*; accepted: 12 texts"):
        draw_assignment(assignment, labels=["a", "b", "c"])


def slots():
    """Weights of two slots of each expert, summing to 1 over all of them."""
    rng = np.random.default_rng(0)
    combine = rng.dirichlet(np.ones(2 * EXPERTS), (GROUPS, TOKENS)).astype(np.float32)
    return Slots(jnp.asarray(combine), jnp.asarray(combine), EXPERTS)


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_panel_for_each_decision(group):
    figure = draw_assignments(decisions() | {"soft_moe": slots()}, group, columns=2)
    *panels, bar = figure.axes
    assert [panel.get_title(loc="left").partition(":")[0] for panel in panels] == [*decisions(), "soft_moe"]
    for panel, assignment in zip(panels, decisions().values(), strict=False):
        mesh, crosses = panel.collections
        np.testing.assert_array_equal(mesh.get_array().filled(0.0), assignment.combine_weights()[group].T)
        np.testing.assert_array_equal(~np.ma.getmaskarray(mesh.get_array()), assignment.dispatch_mask()[group].T)
        lost = np.asarray(assignment.requested[group] & ~assignment.kept[group])
        requested = int(assignment.requested[group].sum())
        assert len(crosses.get_offsets()) == lost.sum()
        assert panel.get_title(loc="left").endswith(f"C = {CAPACITY}, {lost.sum()} of {requested} dropped")
    mesh, crosses = panels[-1].collections
    assert len(crosses.get_offsets()) == 0
    expected = np.asarray(slots().combine)[group].reshape(TOKENS, EXPERTS, 2).sum(axis=-1)
    np.testing.assert_allclose(mesh.get_array(), expected.T, rtol=1e-6)
    assert panels[-1].get_title(loc="left") == "soft_moe: 2 slots of each expert"
    assert bar.get_ylabel() == "combine weight"


def test_the_lowest_panel_of_each_column_names_the_tokens():
    panels = draw_assignments(decisions(), labels=list("abcdefghijkl"), columns=2).axes[:-1]
    named = [[text.get_text() for text in panel.get_xticklabels()] for panel in panels]
    assert named == [[], list("abcdefghijkl"), list("abcdefghijkl")]


def test_decisions_that_do_not_belong_together_are_named():
    alone = jax.random.normal(jax.random.key(0), (1, TOKENS, EXPERTS))
    other = switch(alone, VALID[:1], CAPACITY)
    with pytest.raises(ConfigError, match=r"decisions\['other'\] is \(1, 12, 4\); accepted: .* \(2, 12, 4\)"):
        draw_assignments(decisions() | {"other": other})
    with pytest.raises(ConfigError, match="group is 2; accepted: 0 to 1"):
        draw_assignments(decisions(), group=2)
    with pytest.raises(ConfigError, match=r"labels is \['a'\]; accepted: 12 texts"):
        draw_assignments(decisions(), labels=["a"])
