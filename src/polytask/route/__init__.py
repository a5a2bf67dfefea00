"""Route: the right expert, or the right tool, for each input."""
