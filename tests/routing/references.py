"""Routers, losses and counts written once more, in NumPy and loops, from the papers' pseudo-code and not from ours."""

import numpy as np


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def switch(logits, valid, capacity):
    """Combine weights [G, S, E] of top-1 routing with seats by position (Fedus et al. 2021, section 2.2)."""
    probabilities = softmax(logits.astype(np.float64))
    combine = np.zeros(logits.shape)
    for g in range(len(logits)):
        taken = np.zeros(logits.shape[2], int)
        for s in range(logits.shape[1]):
            if not valid[g, s]:
                continue
            e = probabilities[g, s].argmax()
            if taken[e] < capacity:
                combine[g, s, e] = probabilities[g, s, e]
            taken[e] += 1
    return combine


def top_2(logits, valid, capacity, policy, threshold, draws):
    """Combine weights [G, S, E] of GShard's algorithm 1, with the variants of its authors' code.

    `draws` [G, S] are uniform numbers, for the policy `random`.
    """
    probabilities = softmax(logits.astype(np.float64))
    combine = np.zeros(logits.shape)
    for g in range(len(logits)):
        taken = np.zeros(logits.shape[2], int)
        firsts, seconds = [], []
        for s in range(logits.shape[1]):
            e1 = probabilities[g, s].argmax()
            others = probabilities[g, s].copy()
            others[e1] = -1
            e2 = others.argmax()
            g1, g2 = probabilities[g, s, e1], probabilities[g, s, e2]
            g1, g2 = g1 / (g1 + g2 + 1e-9), g2 / (g1 + g2 + 1e-9)
            asks = {
                "all": True,
                "none": False,
                "threshold": g2 > threshold,
                "random": draws[g, s] < g2 / max(threshold, 1e-9),
            }
            if valid[g, s]:
                firsts.append((s, e1, g1))
                if asks[policy]:
                    seconds.append((s, e2, g2))
        for s, e, weight in firsts + seconds:
            if taken[e] < capacity:
                combine[g, s, e] = weight
                taken[e] += 1
    return combine


def expert_choice(logits, valid, capacity):
    """Combine weights [G, S, E]: each expert takes its best valid tokens (Zhou et al. 2022, section 3.2)."""
    probabilities = softmax(logits.astype(np.float64))
    combine = np.zeros(logits.shape)
    for g in range(len(logits)):
        for e in range(logits.shape[2]):
            candidates = sorted(np.flatnonzero(valid[g]), key=lambda s: -probabilities[g, s, e])
            for s in candidates[:capacity]:
                combine[g, s, e] = probabilities[g, s, e]
    return combine


def balance(probabilities, expert, valid):
    """Mean over groups with a valid token of E * sum_e share_e * mean probability_e."""
    values = []
    for g in range(len(probabilities)):
        tokens = np.flatnonzero(valid[g])
        if not len(tokens):
            continue
        counts = np.zeros(probabilities.shape[2])
        for s in tokens:
            for e in expert[g, s]:
                counts[e] += 1
        share = counts / counts.sum()
        mean = np.mean([probabilities[g, s] for s in tokens], axis=0)
        values.append(probabilities.shape[2] * (share * mean).sum())
    return np.mean(values) if values else 0.0


def z(logits, valid):
    """Mean over valid tokens of log(sum(exp(logits)))^2."""
    values = [np.log(np.exp(logits[g, s]).sum()) ** 2 for g, s in np.argwhere(valid)]
    return np.mean(values) if values else 0.0


def counts(assignment, valid):
    """The metrics of an assignment by counting its entries one by one."""
    experts, capacity = assignment.num_experts, assignment.capacity
    token, expert, requested, seat = map(
        np.asarray, (assignment.token, assignment.expert, assignment.requested, assignment.seat)
    )
    asked, kept, seated = np.zeros(experts), 0, set()
    for g, a in np.ndindex(*token.shape):
        if not requested[g, a]:
            continue
        asked[expert[g, a]] += 1
        if seat[g, a] < capacity:
            kept += 1
            seated.add((g, int(token[g, a])))
    total = asked.sum()
    load = asked / max(total, 1)
    valid_tokens = [(g, s) for g, s in np.argwhere(valid).tolist()]
    unrouted = sum(token not in seated for token in valid_tokens)
    return {
        "load": load,
        "load_max_over_mean": asked.max() / max(asked.mean(), 1e-9),
        "load_cv": asked.std() / max(asked.mean(), 1e-9),
        "load_gini": sum(abs(one - other) for one in load for other in load) / (2 * experts),
        "dead_experts": sum(n == 0 for n in asked) / experts,
        "fraction_dropped": (total - kept) / total if total else 0.0,
        "tokens_unrouted": unrouted / max(len(valid_tokens), 1),
        "seats_filled": kept / (len(token) * experts * capacity),
    }
