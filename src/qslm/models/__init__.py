"""Published networks, one a file, and their neurons."""
