"""The command line: one file per command, with options, inputs and output in common."""
