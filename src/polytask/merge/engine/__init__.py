"""The engine of merging: rules are applied chunk by chunk, after the statistics that they ask for."""
