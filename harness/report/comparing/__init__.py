"""One set of records against another, over time, and against a paper."""
