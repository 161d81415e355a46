"""Experts on several devices: one file for each strategy of bringing tokens to the devices of their experts."""
