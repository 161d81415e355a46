"""Kernels of grouped matrix products: one file for each, and the choice among those that a platform has."""
