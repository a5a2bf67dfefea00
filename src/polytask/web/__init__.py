"""Servers. They need the extra ``web``."""
