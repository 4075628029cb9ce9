"""What runs say of themselves while they go on, kept by trackers of experiments. Imports no torch."""
