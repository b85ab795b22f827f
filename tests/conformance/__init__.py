"""HTTP/1.1 by the letter: cases.py says what must happen, test_conformance.py makes it happen."""
