"""Experts on several devices: one file for each strategy that brings tokens to the devices of their experts."""
