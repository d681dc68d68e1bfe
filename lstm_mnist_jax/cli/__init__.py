"""The command `lstm-mnist`: main.py finds the command, each file parses the arguments of one, calls, and prints."""
