"""Small random sequence classifiers of the BERT type, and the tokenizer of a few words that they are saved with."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

TYPES = ("bert", "distilbert")
WORDS = ["the", "film", "is", "a", "good", "bad", "dull", "fine", "plot", "and", "end", "of", "it", ",", "."]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIZES = {
    "bert": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6},
    "distilbert": {"dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 6},
}


def tiny_bert(kind="bert", *, labels=("LABEL_0", "LABEL_1"), positions=32, vocabulary=40, seed=0, **more):
    """Two layers of width 24, 6 heads of 4; weights that make every part count."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, max_position_embeddings=positions, **SIZES[kind], **more,
        id2label=dict(enumerate(labels)), label2id={name: place for place, name in enumerate(labels)},
    )  # fmt: skip
    network = AutoModelForSequenceClassification.from_config(config).float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(parameter + 0.3 * noise if "norm" in name.lower() else 0.4 * noise)
    return network


def words_tokenizer(frame=True):
    """One id a word; `frame` puts [CLS] and [SEP] around a sentence, as the file of a BERT does."""
    known = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(known, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", known["[CLS]"]), ("[SEP]", known["[SEP]"])]
        )
    return tokenizer


def sentences(count, longest=20, seed=0):
    """So many sentences of 1 to `longest` known words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return tuple(
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator).tolist()) for n in lengths
    )


def save(folder, kind="bert", **options):
    """A folder as `transformers` saves it: weights, config.json and tokenizer.json."""
    network = tiny_bert(kind, **options)
    network.save_pretrained(folder)
    words_tokenizer().save(str(folder / "tokenizer.json"))
    return network
