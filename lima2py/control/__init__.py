"""The session seen from outside: the command line."""
