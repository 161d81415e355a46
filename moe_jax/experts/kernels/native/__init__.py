"""Kernels for CPUs, compiled when moe_jax is installed; XLA calls them."""
