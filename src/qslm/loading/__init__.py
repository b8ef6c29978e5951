"""Opening what names a model. `locating` and `outline` load without PyTorch, so that a refusal comes at once."""
