"""One small application in each framework, all with the same pages (tests/test_frameworks.py); no example to follow."""
