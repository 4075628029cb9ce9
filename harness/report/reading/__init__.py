"""Records as rows of a suite: what a report is about, before it is shown."""
