"""The command line: a file for each group of commands, no logic of its own, torch imported only where it computes."""
