"""What scripts and notebooks call: records as frames, reports as objects, suites run by a function. No torch."""
