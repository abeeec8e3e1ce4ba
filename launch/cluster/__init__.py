"""The Ray that a command talks to."""
