"""Methods in loops of other people's: each module is called like the library whose loop it is."""
