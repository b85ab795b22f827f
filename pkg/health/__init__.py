"""Checks, and the pages that show them."""
