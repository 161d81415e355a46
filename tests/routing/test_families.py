"""Each family's decision and losses against transcriptions of its paper, scipy, and torch."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from scipy.stats import norm
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from moe_jax.routing.base_layers import auction, sinkhorn
from moe_jax.routing.capacity import capacity_per_expert, seats_by_score
from moe_jax.routing.deepseek import group_limited_choices
from moe_jax.routing.dense_mixture import competitive_loss, cooperative_loss, likelihood_loss
from moe_jax.routing.expert_choice import capped_plan, expert_choice, expert_choice_seen
from moe_jax.routing.hash import balanced_table, mixed
from moe_jax.routing.losses import updated_bias
from moe_jax.routing.noisy_top_k import chance_in_top_k
from moe_jax.routing.quantile import quantile_bias
from moe_jax.routing.router import STATE, Tokens
from moe_jax.routing.sparse_mixer import mixed_choice
from moe_jax.routing.st_moe import top_n
from moe_jax.routing.statistics import METRICS, values
from moe_jax.routing.switch import switch, switch_rerouted
from tests.comparison import assert_close
from tests.routing import references
from tests.routing.every import make, state_after

G, S, D, E = 2, 12, 5, 4
SEEDS = st.integers(0, 999)


def problem(seed, groups=G, tokens=S, experts=E, share_valid=0.8, scale=2.0):
    """Logits and validity, in NumPy."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(groups, tokens, experts)) * scale).astype(np.float32)
    return logits, rng.random((groups, tokens)) < share_valid


def tokens_of(seed, share_valid=0.8):
    rng = np.random.default_rng(seed)
    return Tokens(
        x=jnp.asarray(rng.normal(size=(G, S, D)), jnp.float32),
        valid=jnp.asarray(rng.random((G, S)) < share_valid),
        ids=jnp.asarray(rng.integers(0, 50, (G, S)), jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (G, S)),
        sequence_length=S,
    )


def run(router, tokens, params=None, state=None, seed=0):
    """The assignment and what was sown."""
    variables = {"params": params or {}} | ({STATE: state} if state else {})
    assignment, sown = router.apply(variables, tokens, rngs={"routing": jax.random.key(seed)}, mutable=[METRICS])
    return assignment, values(sown[METRICS])


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "factor", "expected"),
    [(1000, 2, 16, 1.25, 78), (16, 1, 16, 1.25, 4), (1024, 1, 8, 2.0, 256), (3, 1, 1, 1.0, 3), (64, 1, 2, 4.0, 64)],
)
def test_capacity_of_mesh_tensorflow(tokens, k, experts, factor, expected):
    assert capacity_per_expert(factor, tokens, k, experts, "mesh_tensorflow") == expected


@given(SEEDS, st.integers(1, 3))
def test_seats_by_score_are_those_of_a_sort(seed, k):
    rng = np.random.default_rng(seed)
    expert = np.stack([[rng.permutation(E)[:k] for _ in range(S)] for _ in range(G)]).astype(np.int32)
    requested, score = rng.random((G, S, k)) < 0.7, rng.integers(0, 4, (G, S, k)).astype(np.float32)
    seats = np.asarray(seats_by_score(*map(jnp.asarray, (expert, requested, score)), E))
    for g in range(G):
        taken = np.zeros(E, int)
        for choice in range(k):
            for s in sorted(range(S), key=lambda s: -score[g, s, choice]):
                if requested[g, s, choice]:
                    assert seats[g, s, choice] == taken[expert[g, s, choice]]
                    taken[expert[g, s, choice]] += 1


@given(SEEDS, st.sampled_from([1, 2, 4]))
def test_switch_max_keeps_the_largest_gates(seed, capacity):
    logits, valid = problem(seed)
    mask = np.asarray(switch(jnp.asarray(logits), jnp.asarray(valid), capacity, "probability").dispatch_mask())
    probabilities = references.softmax(logits.astype(np.float64))
    for g, e in np.ndindex(G, E):
        asking = [s for s in np.flatnonzero(valid[g]) if probabilities[g, s].argmax() == e]
        best = sorted(asking, key=lambda s: -probabilities[g, s, e])[:capacity]
        assert set(np.flatnonzero(mask[g, :, e])) == set(best)


@given(SEEDS, st.integers(1, 3), st.integers(2, E))
def test_no_token_is_left_behind_as_in_loops(seed, capacity, rounds):
    logits, valid = problem(seed)
    assignment = switch_rerouted(jnp.asarray(logits), jnp.asarray(valid), capacity, rounds)
    probabilities = references.softmax(logits.astype(np.float64))
    expected = np.zeros(logits.shape)
    for g in range(G):
        taken, waiting = np.zeros(E, int), list(np.flatnonzero(valid[g]))
        for r in range(rounds):
            for s in list(waiting):
                e = np.argsort(-probabilities[g, s], kind="stable")[r]
                if taken[e] < capacity:
                    taken[e] += 1
                    expected[g, s, e] = probabilities[g, s, e]
                    waiting.remove(s)
    assert_close(assignment.combine_weights(), expected, 1e-6)
    assert int(assignment.requested.sum()) == valid.sum()


def test_sampling_draws_by_probability_and_weighs_by_it():
    logits = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 2.0]), (1, 6000, 3))
    assignment = switch(logits, jnp.ones((1, 6000), bool), 6000, rng=jax.random.key(0))
    probabilities = references.softmax(np.asarray([0.0, 1.0, 2.0]))
    share = np.bincount(np.asarray(assignment.expert[0]), minlength=3) / 6000
    assert (np.abs(share - probabilities) < 5 * np.sqrt(probabilities * (1 - probabilities) / 6000)).all()
    assert_close(assignment.weight, probabilities[np.asarray(assignment.expert)], 1e-6)


@given(SEEDS, st.integers(1, 3), st.sampled_from([0.0, 0.2, 0.6]), st.sampled_from(["position", "batch"]))
def test_top_n_is_st_moe_s(seed, n, threshold, priority):
    logits, valid = problem(seed)
    rng, capacity = jax.random.key(seed), 3
    assignment = top_n(jnp.asarray(logits), jnp.asarray(valid), capacity, n, threshold, priority, rng)
    draws = np.asarray(jax.random.uniform(rng, (G, S, n)))
    probabilities = references.softmax(logits.astype(np.float64))
    expected = np.zeros(logits.shape)
    for g in range(G):
        taken = np.zeros(E, int)
        order = np.argsort(-probabilities.max(axis=-1)[g], kind="stable") if priority == "batch" else range(S)
        best = np.argsort(-probabilities[g], axis=-1, kind="stable")[:, :n]
        for choice, s in itertools.product(range(n), order):
            e = best[s, choice]
            gates = probabilities[g, s, best[s]]
            gate = gates[choice] / gates.sum() if n > 1 else gates[0]
            if valid[g, s] and (choice == 0 or draws[g, s, choice] * threshold < gate):
                if taken[e] < capacity:
                    expected[g, s, e] = gate
                taken[e] += 1
    assert_close(assignment.combine_weights(), expected, 1e-6)


@given(SEEDS, st.integers(1, 3))
def test_the_load_of_noisy_top_k_is_shazeer_s_equation(seed, k):
    rng = np.random.default_rng(seed)
    clean, noise = rng.normal(size=(1, S, E)), rng.normal(size=(1, S, E))
    scale = rng.random((1, S, E)) + 0.1
    noisy = clean + noise * scale
    expected = np.zeros((1, S, E))
    for s, i in np.ndindex(S, E):
        others = sorted(np.delete(noisy[0, s], i))[::-1]
        expected[0, s, i] = norm.cdf((clean[0, s, i] - others[k - 1]) / scale[0, s, i])
    actual = chance_in_top_k(*(jnp.asarray(x, jnp.float32) for x in (clean, noisy, scale)), k)
    assert_close(actual, expected)


def noisy_reference(tokens, params, k, noise):
    """Gates, importance and load losses of noisy top-k in float64."""
    x, valid = np.asarray(tokens.x, np.float64), np.asarray(tokens.valid)
    clean = x @ np.asarray(params["kernel"], np.float64)
    scale = np.log1p(np.exp(x @ np.asarray(params["noise_kernel"], np.float64)))
    noisy = clean + noise * scale
    gates, load = np.zeros(clean.shape), np.zeros(clean.shape)
    for g, s in np.ndindex(G, S):
        best = np.argsort(-noisy[g, s])[:k]
        # Of one expert the plain probability; the paper has two or more.
        gates[g, s, best] = references.softmax(noisy[g, s, best]) if k > 1 else references.softmax(noisy[g, s])[best]
        for i in range(E):
            others = sorted(np.delete(noisy[g, s], i))[::-1]
            load[g, s, i] = norm.cdf((clean[g, s, i] - others[k - 1]) / scale[g, s, i])

    def variation(amounts):
        total = amounts[valid].sum(axis=0)
        return total.var() / total.mean() ** 2

    return gates * valid[..., None], variation(gates), variation(load)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_noisy_top_k_is_shazeer_s(k):
    tokens, rng = tokens_of(3), np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=(D, E)), jnp.float32) for name in ("kernel", "noise_kernel")}
    router = make("noisy_top_k", E, k, training=True)
    noise = []
    drawn = jax.random.normal

    def draw(*arguments):
        noise.append(drawn(*arguments))
        return noise[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", draw)
        assignment, sown = run(router, tokens, params)
    gates, importance, load = noisy_reference(tokens, params, k, np.asarray(noise[0], np.float64))
    assert_close(assignment.combine_weights(), gates)
    assert_close(sown["importance_loss"], importance)
    assert_close(sown["load_loss"], load)
    quiet, _ = run(router.clone(training=False), tokens, params)
    gates, _, _ = noisy_reference(tokens, params, k, 0.0)
    assert_close(quiet.combine_weights(), gates)


@pytest.mark.parametrize("k", [1, 2])
def test_vmoe_is_its_paper_s(k):
    tokens = tokens_of(4)
    kernel = np.random.default_rng(1).normal(size=(D, E))
    router = make("vmoe", E, k, training=True)
    noise = []
    drawn = jax.random.normal
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda *a: noise.append(drawn(*a)) or noise[-1])
        assignment, sown = run(router, tokens, {"kernel": jnp.asarray(kernel, jnp.float32)})
    valid = np.asarray(tokens.valid)
    clean = np.asarray(tokens.x, np.float64) @ kernel
    noisy = clean + np.asarray(noise[0]) / E
    gates, load = np.zeros(clean.shape), np.zeros(clean.shape)
    for g, s in np.ndindex(G, S):
        best = np.argsort(-noisy[g, s])[:k]
        gates[g, s, best] = references.softmax(noisy[g, s])[best]
        load[g, s] = 1 - norm.cdf((np.sort(noisy[g, s])[-k] - clean[g, s]) * E)
    assert_close(assignment.combine_weights(), gates * valid[..., None])
    for name, amounts in (("importance_loss", references.softmax(clean)), ("load_loss", load)):
        total = amounts[valid].sum(axis=0)
        assert_close(sown[name], total.var() / total.mean() ** 2, what=name)


@pytest.mark.parametrize(("group_score", "counted"), [("max", 1), ("top2_sum", 2)])
@given(SEEDS, st.booleans())
def test_group_limited_choices_are_those_of_loops(group_score, counted, seed, biased):
    rng = np.random.default_rng(seed)
    # With a bias, selections may be negative: experts of groups that are out must not come in for that.
    selection = rng.random((1, S, 12)) - (2.0 if biased else 0.0)
    chosen = np.asarray(group_limited_choices(jnp.asarray(selection, jnp.float32), 4, 4, 2, group_score))
    for s in range(S):
        groups = selection[0, s].reshape(4, 3)
        value = np.sort(groups, axis=1)[:, -counted:].sum(axis=1)
        allowed = np.argsort(-value)[:2]
        candidates = [e for e in range(12) if e // 3 in allowed]
        expected = sorted(candidates, key=lambda e: -selection[0, s, e])[:4]
        assert chosen[0, s].tolist() == expected


def test_a_selection_bias_moves_against_the_load_and_keeps_its_mean():
    bias = updated_bias(jnp.asarray([0.1, 0.0, -0.1, 0.0]), jnp.asarray([5.0, 1.0, 3.0, 3.0]), 0.01)
    moved = np.asarray([0.1 - 0.01, 0.01, -0.1, 0.0])
    assert_close(bias, moved - moved.mean(), 1e-6)
    assert abs(float(bias.sum())) < 1e-7


def test_the_bias_of_deepseek_chooses_and_does_not_weigh():
    tokens, kernel = tokens_of(0), jnp.asarray(np.random.default_rng(0).normal(size=(D, E)), jnp.float32)
    router = make("deepseek", E, 2, renormalize=False)
    bias = jnp.asarray([50.0, 0.0, -50.0, 0.0])
    assignment, sown = run(router, tokens, {"kernel": kernel}, {"bias": bias})
    mask = np.asarray(assignment.dispatch_mask())[np.asarray(tokens.valid)]
    assert mask[:, 0].all()
    assert not mask[:, 2].any()
    scores = 1 / (1 + np.exp(-np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64)))
    weights = np.asarray(assignment.combine_weights())
    assert_close(weights, np.where(weights > 0, scores, 0.0))
    assert_close(state_after(router, {"bias": bias}, sown)["bias"], updated_bias(bias, sown["load"], 0.001), 1e-6)


@pytest.mark.parametrize("level", ["group", "sequence", "batch"])
def test_a_balance_loss_is_a_mean_over_its_level(level):
    """Four sequences of 6 in two groups of 12; the loss of each part is that of the part alone."""
    tokens = tokens_of(5).replace(sequence_length=6)
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(D, E)), jnp.float32)
    router = make("top_k", E, 2, loss_level=level)
    _, sown = run(router, tokens, {"kernel": kernel})
    parts = {"group": 2, "sequence": 4, "batch": 1}[level]
    probabilities = references.softmax(np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64))
    expert = np.argsort(-probabilities, axis=-1)[..., :2]
    by_part = (x.reshape(parts, -1, *x.shape[2:]) for x in (probabilities, expert, np.asarray(tokens.valid)))
    assert_close(sown["balance_loss"], references.balance(*by_part))


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([(6, 1), (8, 4), (12, 3), (12, 5), (200, 8)]), st.booleans())
def test_the_auction_is_the_linear_assignment(seed, shape, alike):
    """Integer scores and a unit below 1 / 2 tokens leave no room between the auction's sum and the largest."""
    tokens, experts = shape
    seats = -(-tokens // experts)
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 9, (tokens, experts)).astype(np.float32)
    if alike:
        scores = scores[rng.integers(0, 3, tokens)]
    expert = np.asarray(auction(jnp.asarray(scores), seats, tolerance=0.4 / tokens / 9))
    assert np.bincount(expert, minlength=experts).max() <= seats
    rows, columns = linear_sum_assignment(np.repeat(scores, seats, axis=1), maximize=True)
    assert scores[np.arange(tokens), expert].sum() == scores[rows, columns // seats].sum()


def test_an_auction_that_is_cut_short_seats_everyone_all_the_same():
    """After one round of bids many have no seat: they get the free ones."""
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(21, 4)) + np.asarray([5, 0, 0, 0]), jnp.float32)
    short, whole = auction(scores, 6, most_rounds=1), auction(scores, 6)
    assert np.bincount(short, minlength=4).max() <= 6
    worth = [float(scores[np.arange(21), expert].sum()) for expert in (short, whole)]
    assert worth[0] < worth[1]


def test_base_is_even_in_training_and_greedy_in_evaluation():
    tokens = tokens_of(0, share_valid=1.1)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(D, E)) + np.asarray([3, 0, 0, 0]), jnp.float32)
    router = make("base", E, 1, training=True)
    trained, _ = run(router, tokens, {"kernel": kernel})
    scores = np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_array_equal(np.asarray(trained.dispatch_mask()).sum(axis=1), S // E)
    for g in range(G):
        rows, columns = linear_sum_assignment(np.repeat(scores[g], S // E, axis=1), maximize=True)
        reached = scores[g][np.asarray(trained.dispatch_mask()[g])].sum()
        assert reached >= scores[g][rows, columns // (S // E)].sum() - S * 1e-3 * np.ptp(scores)
    weights = np.asarray(trained.combine_weights())
    assert_close(weights, np.where(weights > 0, 1 / (1 + np.exp(-scores)), 0.0))
    greedy, _ = run(router.clone(training=False), tokens, {"kernel": kernel})
    np.testing.assert_array_equal(greedy.expert, scores.argmax(axis=-1))
    assert greedy.kept.all()


@given(SEEDS)
def test_sinkhorn_reaches_equal_sums(seed):
    logits, valid = problem(seed)
    valid[:, 0] = True
    plan = np.exp(np.asarray(sinkhorn(jnp.asarray(logits), jnp.asarray(valid), 200)))
    for g in range(G):
        cost = np.exp(logits[g][valid[g]].astype(np.float64))
        rows, columns = np.ones(len(cost)), np.ones(E)
        for _ in range(200):  # Megatron-LM's loop.
            rows = 1 / len(cost) / (cost @ columns)
            columns = 1 / E / (rows @ cost)
        assert_close(plan[g][valid[g]], rows[:, None] * cost * columns, 1e-4)
        assert (plan[g][~valid[g]] == 0).all()
    assert_close(plan.sum(axis=1), np.full((G, E), 1 / E), 1e-4)


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([1, 2, 3]))
def test_the_capped_plan_solves_the_linear_programme(seed, most):
    """With little entropy and many rounds: scipy's optimum, each expert C tokens, each token at most `most` experts."""
    tokens, experts, capacity = 8, 4, 2 * most
    scores = np.random.default_rng(seed).random((1, tokens, experts)).astype(np.float32)
    plan = capped_plan(jnp.asarray(scores), jnp.ones((1, tokens), bool), capacity, most, 0.005, 3000)
    plan = np.exp(np.asarray(plan[0], np.float64))
    by_expert = np.kron(np.ones((1, tokens)), np.eye(experts))
    by_token = np.kron(np.eye(tokens), np.ones((1, experts)))
    best = linprog(
        -scores[0].reshape(-1),
        A_ub=by_token,
        b_ub=np.full(tokens, most),
        A_eq=by_expert,
        b_eq=np.full(experts, capacity),
        bounds=(0, 1),
    )
    assert_close(plan.sum(axis=0), np.full(experts, capacity), 1e-2)
    assert plan.sum(axis=1).max() <= most + 1e-2
    assert abs((plan * scores[0]).sum() + best.fun) < 0.02


@pytest.mark.parametrize(("entropy", "iterations", "left"), [(0.01, 100, 0.4), (0.001, 1000, 0.3)])
def test_capped_expert_choice_limits_the_experts_of_a_token(entropy, iterations, left):
    """Of what tokens have above the cap, `left` remains at most; without a cap some have it."""
    logits = jax.random.normal(jax.random.key(0), (8, 64, 8))
    valid = jnp.ones((8, 64), bool)

    def excess(most, *options):
        taken = expert_choice(logits, valid, 16, most, *options).dispatch_mask().sum(axis=-1)
        return int(jnp.maximum(taken - 2, 0).sum())

    free = excess(None)
    assert free > 80
    assert excess(2, entropy, iterations) <= left * free


@given(SEEDS, st.sampled_from([2, 4, 6]))
def test_expert_choice_among_the_seen_is_that_of_loops(seed, capacity):
    logits, valid = problem(seed)
    mask = np.asarray(expert_choice_seen(jnp.asarray(logits), jnp.asarray(valid), capacity).dispatch_mask())
    probabilities = references.softmax(logits.astype(np.float64))
    for g, e in np.ndindex(G, E):
        taken, seen = [], []
        for s in np.flatnonzero(valid[g]):
            score = probabilities[g, s, e]
            better = sum(other >= score for other in seen)
            seen.append(score)
            if better < math.floor(Fraction(capacity * len(seen), S) + Fraction(1, 2)) and len(taken) < capacity:
                taken.append(s)
        assert np.flatnonzero(mask[g, :, e]).tolist() == taken


@given(SEEDS, st.integers(1, 3))
def test_quantile_bias_is_that_of_sorted_lists(seed, k):
    rng = np.random.default_rng(seed)
    scores, bias = rng.random((G, S, E)).astype(np.float32), rng.random(E).astype(np.float32)
    valid = rng.random((G, S)) < 0.8
    actual = quantile_bias(*map(jnp.asarray, (scores, valid, bias)), k)
    rows = scores[valid]
    threshold = np.sort(rows - bias, axis=1)[:, -(k + 1)]
    surplus = np.sort(rows - threshold[:, None], axis=0)[::-1]
    assert_close(actual, surplus[len(rows) * k // E], 1e-6)


def test_quantile_balancing_evens_a_skewed_load():
    tokens = tokens_of(0, share_valid=1.1)
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(D, E)) * 2, jnp.float32)
    router = make("quantile", E, 1, rate=0.5)
    state, loads = {"bias": jnp.zeros(E)}, []
    for _ in range(20):
        _, sown = run(router, tokens, {"kernel": kernel}, state)
        loads.append(float(sown["load_max_over_mean"]))
        state = state_after(router, state, sown)
    assert loads[-1] < 1.2 < loads[0]


def test_the_hash_is_murmur_s_finalizer():
    def finalize(h):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            h = ((h ^ (h >> shift)) * factor) & 0xFFFFFFFF
        return (h ^ (h >> 16)) >> 1

    ids = list(range(300))
    for seed in (0, 5):
        expected = [finalize((i + seed * 0x9E3779B9) & 0xFFFFFFFF) for i in ids]
        np.testing.assert_array_equal(mixed(jnp.asarray(ids, jnp.int32), seed), expected)
    share = np.bincount(np.asarray(mixed(jnp.arange(8000, dtype=jnp.int32), 0)) % 8) / 8000
    assert (np.abs(share - 1 / 8) < 5 * np.sqrt(7 / 64 / 8000)).all()


def test_a_balanced_table_spreads_frequencies():
    counts = [1000, 500, 400, 100, 60, 40, 30, 10]
    table = balanced_table(counts, 2)
    assert table[0] != table[1]
    assert table[1] == table[2]
    load = np.bincount(table, weights=counts)
    assert abs(load[0] - load[1]) <= 10 + 60


@pytest.mark.parametrize("by", ["token", "balanced", "position"])
def test_a_hash_routes_by_what_it_says(by):
    tokens = tokens_of(0, share_valid=1.1)
    router = make("hash", E, 1, by=by, counts=tuple(range(50)) if by == "balanced" else ())
    expert = np.asarray(run(router, tokens)[0].expert)
    key = np.asarray(tokens.positions if by == "position" else tokens.ids)
    for value in np.unique(key):
        assert len(set(expert[key == value].tolist())) == 1
    assert len(set(expert.reshape(-1).tolist())) == E


def test_remoe_runs_positive_logits_and_steers_their_number():
    tokens, kernel = tokens_of(1), jnp.asarray(np.random.default_rng(0).normal(size=(D, E)), jnp.float32)
    router = make("remoe", E, 1, loss_level="batch")
    assignment, sown = run(router, tokens, {"kernel": kernel}, {"coefficient": jnp.float32(0.5)})
    valid = np.asarray(tokens.valid)
    logits = np.asarray(tokens.x, np.float64) @ np.asarray(kernel, np.float64)
    weights = np.maximum(logits, 0) * valid[..., None]
    assert_close(assignment.combine_weights(), weights)
    rows, running = weights[valid], logits[valid] > 0
    penalty = sum(E / 1 / len(rows) * running[:, e].sum() * rows[:, e].mean() for e in range(E))
    assert_close(sown["sparsity_loss"], 0.5 * penalty)
    assert_close(sown["active_share"], running.mean())
    assert running.mean() > 1 / E
    assert_close(state_after(router, {"coefficient": jnp.float32(0.5)}, sown)["coefficient"], 0.6)


def test_the_losses_of_1991_are_their_equations():
    rng = np.random.default_rng(0)
    outputs, target = rng.normal(size=(7, 3, 2)), rng.normal(size=(7, 2))
    gate = references.softmax(rng.normal(size=(7, 3)))
    cooperative = competitive = likelihood = 0.0
    for t in range(7):
        errors = [((target[t] - outputs[t, e]) ** 2).sum() for e in range(3)]
        cooperative += ((target[t] - sum(gate[t, e] * outputs[t, e] for e in range(3))) ** 2).sum() / 7
        competitive += sum(gate[t, e] * errors[e] for e in range(3)) / 7
        likelihood -= np.log(sum(gate[t, e] * np.exp(-errors[e] / 2) for e in range(3))) / 7
    arrays = [jnp.asarray(x, jnp.float32) for x in (outputs, gate, target)]
    assert_close(cooperative_loss(*arrays), cooperative)
    assert_close(competitive_loss(*arrays), competitive)
    assert_close(likelihood_loss(*arrays), likelihood)
    # The gradient the paper gives: the posterior times the error.
    errors = ((target[:, None] - outputs) ** 2).sum(axis=-1)
    posterior = gate * np.exp(-errors / 2)
    posterior /= posterior.sum(axis=1, keepdims=True)
    gradient = jax.grad(likelihood_loss)(*arrays)
    assert_close(gradient, -posterior[..., None] * (target[:, None] - outputs) / 7)


@pytest.mark.parametrize("training", [False, True])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_sparse_mixer_is_phi_s(training, seed):
    """Weights and their gradient; in training, with the draws that torch made."""
    torch.manual_seed(seed)
    scores = (torch.randn(S, 6) * 0.5).requires_grad_()
    tolerance = 0.3
    cotangent = torch.randn(S, 2)
    expected, chosen = sparsemixer(scores, tolerance, training, 2)
    (expected * cotangent).sum().backward()

    def ours(logits):
        allowed, weights = jnp.ones((1, S, 6), bool), []
        for choice in range(2):
            expert = jnp.asarray(chosen[:, choice].numpy().astype(np.int32))[None]
            weight, decided = mixed_choice(logits, allowed, tolerance, None)
            if training:
                weight = forced(logits, allowed, expert)
            else:
                np.testing.assert_array_equal(decided, expert)
            allowed &= ~jax.nn.one_hot(expert, 6, dtype=jnp.bool_)
            weights.append(weight)
        return jnp.stack(weights, axis=-1)

    def forced(logits, allowed, expert):
        """The weight when torch's expert is drawn, and its coin is read off its weight."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "categorical", lambda *_: expert)
            patch.setattr(jax.random, "uniform", lambda *_: jnp.ones(expert.shape))
            whole, _ = mixed_choice(logits, allowed, tolerance, jax.random.key(0))
            patch.setattr(jax.random, "uniform", lambda *_: jnp.zeros(expert.shape))
            cut, _ = mixed_choice(logits, allowed, tolerance, jax.random.key(0))
        theirs = jnp.asarray(expected.detach().numpy())[None, :, int(6 - allowed[0, 0].sum())]
        return jnp.where(jnp.abs(jax.lax.stop_gradient(whole) - theirs) < 1e-3, whole, cut)

    logits = jnp.asarray(scores.detach().numpy())[None]
    weights, vjp = jax.vjp(ours, logits)
    # Their 1/3 is written 0.3333 and 0.6667.
    assert_close(weights[0], expected.detach(), 1e-4)
    assert_close(vjp(jnp.asarray(cotangent.numpy())[None])[0][0], scores.grad, 1e-4)


def test_sparse_mixer_draws_by_probability_and_cuts_three_of_four_others():
    logits = jnp.broadcast_to(jnp.asarray([0.3, 0.0, 0.2]), (1, 8000, 3))
    weight, expert = mixed_choice(logits, jnp.ones(logits.shape, bool), 5.0, jax.random.key(0))
    probabilities = references.softmax(np.asarray([0.3, 0.0, 0.2]))
    share = np.bincount(np.asarray(expert[0]), minlength=3) / 8000
    assert (np.abs(share - probabilities) < 5 * np.sqrt(0.25 / 8000)).all()
    relative = np.asarray(weight[0]) / probabilities[np.asarray(expert[0])]
    assert (np.abs(relative[np.asarray(expert[0]) == 0] - 1) < 1e-5).all()
    others = relative[np.asarray(expert[0]) != 0]
    assert set(np.round(others, 4)) == {1.0, 0.3333}
    assert abs((others < 0.5).mean() - 0.75) < 0.04


@pytest.mark.parametrize("training", [False, True])
def test_hierarchical_routing_is_the_product_of_two(training):
    """Experts of each group by its own router on the tokens that were sent there; importance and load as in app. B.

    In training all noise drawn is 0, so that who is chosen is known, and the chances of being chosen are not trivial.
    """
    tokens = tokens_of(2)
    router = make("hierarchical", 6, 2, training=training, groups=3, outer_k=2)
    rng = np.random.default_rng(0)
    params = {
        "outer": {name: jnp.asarray(rng.normal(size=(D, 3)), jnp.float32) for name in ("kernel", "noise_kernel")},
        "inner": {name: jnp.asarray(rng.normal(size=(3, D, 2)), jnp.float32) for name in ("kernel", "noise_kernel")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda key, shape: jnp.zeros(shape, jnp.float32))
        assignment, sown = run(router, tokens, params)
    x, valid = np.asarray(tokens.x, np.float64), np.asarray(tokens.valid)
    outer, inner = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[level]) for level in params)
    expected, sent = np.zeros((G, S, 6)), np.zeros(3)
    outer_load, inner_load = np.zeros(3), np.zeros((3, 2))
    for g, s in np.argwhere(valid):
        clean = x[g, s] @ outer["kernel"]
        outer_load += chances(clean, x[g, s] @ outer["noise_kernel"], 2)
        best = np.argsort(-clean)[:2]
        for weight, i in zip(references.softmax(clean[best]), best, strict=True):
            within = x[g, s] @ inner["kernel"][i]
            expected[g, s, 2 * i + within.argmax()] = weight * references.softmax(within).max()
            inner_load[i] += chances(within, x[g, s] @ inner["noise_kernel"][i], 1)
            sent[i] += 1
    assert_close(assignment.combine_weights(), expected)
    importance = expected.sum(axis=(0, 1))
    assert_close(sown["importance_loss"], importance.var() / importance.mean() ** 2)
    asked = (expected > 0).sum(axis=(0, 1))
    assert_close(sown["load"], asked / asked.sum(), 1e-6)
    load = (outer_load[:, None] * inner_load / sent[:, None]).reshape(-1) if training else asked
    assert_close(sown["load_loss"], load.var() / load.mean() ** 2)


def chances(clean, before_softplus, k):
    """Of each expert's being among the top k when its noise alone is drawn anew, the others having none."""
    others = [sorted(np.delete(clean, i))[::-1][k - 1] for i in range(len(clean))]
    return norm.cdf((clean - others) / np.log1p(np.exp(before_softplus)))
