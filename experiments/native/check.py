"""A layer on the native library of an installed moe_jax, against the definition; prints its largest error, as JSON.

`versions.py` runs this file, in an empty folder, by interpreters that have moe_jax but not `experiments`.
"""

import hashlib
import json
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.layers.moe import MoE, MoEConfig
from moe_jax.native.library import LIBRARY, is_installed

HANDLERS = ("moe_jax_sort", "moe_jax_product", "moe_jax_product_sum", "moe_jax_outer")


def main() -> None:
    """Prints the versions, the library's place and digest, and the error of the layer's values and gradients."""
    warnings.simplefilter("error", RuntimeWarning)
    assert is_installed()
    x = jax.random.normal(jax.random.key(0), (2, 96, 48))
    config = {"num_experts": 5, "expert_dim": 80, "ffn": "swiglu", "router": "top_k", "k": 2, "capacity_factor": None}
    variables = MoE(MoEConfig(**config, execution="oracle")).init(jax.random.key(1), x)

    def loss(params, x, execution):
        y, _ = MoE(MoEConfig(**config, execution=execution)).apply({**variables, "params": params}, x, mutable=True)
        return jnp.sum(jnp.sin(y)), y

    results = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    program = results.lower(variables["params"], x, "auto").as_text()
    assert not [name for name in HANDLERS if f"@{name}(" not in program], program
    found, expected = (jax.tree.leaves(results(variables["params"], x, name)) for name in ("auto", "oracle"))
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True)]
    digest = hashlib.sha256(LIBRARY.read_bytes()).hexdigest()
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    print(json.dumps({**versions, "library": str(LIBRARY), "digest": digest, "error": float(max(errors))}))


if __name__ == "__main__":
    main()
