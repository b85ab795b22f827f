"""One process that serves: its parts, how it starts, and how it ends."""
