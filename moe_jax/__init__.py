"""moe_jax: sparse Mixture-of-Experts transformers in JAX and Flax (Linen), for research."""

__version__ = "0.1.0"
