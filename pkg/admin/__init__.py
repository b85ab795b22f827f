"""The admin listener and its pages."""
