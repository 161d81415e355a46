"""What the CPU runs that XLA does not compile: built when moe_jax is installed, called by XLA."""
