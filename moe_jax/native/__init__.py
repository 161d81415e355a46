"""Code for CPUs in C++, which XLA calls: built when moe_jax is installed."""
