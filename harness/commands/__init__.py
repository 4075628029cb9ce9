"""What each command of the CLI does, one command a file; imported when it runs, so that ``--help`` is quick."""
