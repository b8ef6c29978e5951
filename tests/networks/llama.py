"""Small random networks of `transformers` of every type that is built as Llama is."""

import torch

TYPES = ("llama", "mistral", "qwen2", "gemma")


def tiny(kind="llama", *, tied=False, seed=0, vocabulary=40):
    """Two layers of width 24, 6 heads of 4, of which 2 or 3 are of keys; weights that make every part count."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=64, tie_word_embeddings=tied, pad_token_id=None,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(parameter + 0.3 * noise if "norm" in name else 0.2 * noise)
    return network
