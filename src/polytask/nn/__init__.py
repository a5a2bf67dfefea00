"""Layers and encoders that at least two systems use."""
