"""One small application in each framework, all with the same pages (tests/http/test_frameworks.py); no examples."""
