"""Opening what names a model; `locating` and `outline` do without PyTorch, so that a refusal comes at once."""
