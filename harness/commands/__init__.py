"""What each command does, one a file, asked in types: it knows no command line, and a program may call it as well."""
