"""Real faults for tests: a PostgreSQL server that can fail in every way, and a network that misbehaves.

It holds no assertion; what must follow from a fault is said in the tests.
"""
