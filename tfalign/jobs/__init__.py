"""What the command line runs. Jobs know files and networks, nothing of the terminal."""
