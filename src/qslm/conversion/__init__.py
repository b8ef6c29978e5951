"""SpikeQuant conversion of a language model, a block at a time."""
