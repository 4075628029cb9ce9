"""Records to conclusions: summary, tables, plots. Never imports torch or the engine."""
