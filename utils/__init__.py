"""Thin helpers behind Neuronym's notebooks: one idea per module."""
