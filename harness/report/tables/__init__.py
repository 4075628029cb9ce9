"""One table for a paper, of chosen columns and rows over models and suites."""
