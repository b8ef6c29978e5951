"""The command line: one file a verb; each reads its options, calls the Python interface and prints."""
