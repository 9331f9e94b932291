"""What the command line does: a file a command, their options in common, and what they print."""
