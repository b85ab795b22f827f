"""The settings: how they are declared, read and converted."""
