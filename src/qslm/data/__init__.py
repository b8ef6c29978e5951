"""Text in: tokenizers, the published data sets, and the user's own files."""
