"""Intervals, pairs and families: formulas with their sources. Knows no record's fields but scores'."""
