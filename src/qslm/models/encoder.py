"""Sequence classifiers of `transformers`: encoders of the BERT type with a head on their first position."""

from torch import Tensor

from qslm.errors import TaskError
from qslm.models.pretrained import PretrainedNetwork


class EncoderLogits(PretrainedNetwork):
    """Token ids (sentences, tokens) in, logits (sentences, classes) out.

    Sentences stand between the tokens that their tokenizer puts around them, [CLS] ... [SEP] of a BERT.
    """

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens see each other, but for padding: `mask` (sentences, tokens) is True on real tokens.

        Raises TaskError where a sentence is longer than the table of positions.
        """
        if ids.shape[1] > (positions := self.config.context_length):
            raise TaskError(
                f"Sentences of {ids.shape[1]:,} tokens are longer than the network's table of {positions:,} positions.",
                f"Cut them: a context of {positions}.",
            )
        logits: Tensor = self.network(input_ids=ids, attention_mask=mask).logits
        return logits
