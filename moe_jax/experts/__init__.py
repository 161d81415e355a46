"""Experts: executions on one device, kernels, strategies on several devices, and the plan that names them."""
