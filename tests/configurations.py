"""A configuration of a run that is accepted, and changes of it."""

import copy

GOOD = {
    "name": "small",
    "model": {
        "vocab_size": 257,
        "num_layers": 4,
        "model_dim": 16,
        "attention": {"heads": 4},
        "ffn_dim": 32,
        "moe_layers": (1, 3),
        "moe": {"num_experts": 4},
    },
    "data": {"sequence_length": 32, "batch_size": 4},
    "optimizer": {"warmup_steps": 10},
    "steps": 100,
}

# Changes that make a pair of stacks of it.
PAIRED = {
    "data.task": {"kind": "span_corruption", "target_length": 20, "sentinels": 4},
    "model.architecture": "encoder_decoder",
    "model.vocab_size": 261,
}


def changed(changes):
    """`GOOD` with dotted fields changed; `...` leaves a field out."""
    values = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return values
