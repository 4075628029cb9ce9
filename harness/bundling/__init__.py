"""All that a suite needs in one folder, for a machine without a network."""
