"""Byte-pair tokenizers: trained, loaded, and turned from text into ids."""

import hashlib
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qslm.errors import DataError, TaskError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SPECIAL_TOKENS = [END_OF_TEXT, PADDING]  # ids 0 and 1, as in GPT-NeoX's tokenizer
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
PIECE = 1 << 16  # characters that are encoded at once
_CUT = re.compile(r"(?<=\S)\n(?=\S)|\n(?= \S)")


def train_tokenizer(lines: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer on `lines`; the same lines give the same tokenizer.

    It is of GPT-NeoX's kind: no space is put before the text, all 256 bytes are in the vocabulary (so every
    text has ids and decodes to itself), `<|endoftext|>` is 0 and `<|padding|>` is 1. Unlike GPT-NeoX's it
    does not normalize the text, so that bits per byte are those of the text as it is. A text with few
    distinct words gives fewer than `vocabulary_size` tokens.

    Raises DataError when `vocabulary_size` has no room for the bytes and the special tokens.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"A vocabulary of {vocabulary_size} tokens has no room for the 256 bytes and {SPECIAL_TOKENS}.",
            f"Ask for {SMALLEST_VOCABULARY} tokens or more.",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises DataError when the file cannot be read or is not a tokenizer.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"There is no tokenizer at {path}.", "Give the path of a tokenizer.json.") from None
    except (OSError, UnicodeDecodeError) as error:
        problem = f"The tokenizer {path} cannot be read: {error}."
        raise DataError(problem, "Give a readable tokenizer.json.") from error
    return parse_tokenizer(text, str(path))


def parse_tokenizer(text: str, origin: str) -> Tokenizer:
    """Make a tokenizer of the text of a `tokenizer.json`; `origin` names it in errors.

    It neither cuts nor pads, whatever the file says: tasks do. Raises DataError when the text is not a tokenizer.
    """
    with _library_errors(f"{origin} is not a tokenizer"):
        tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextmanager
def _library_errors(problem: str) -> Iterator[None]:
    """Turn what the library raises into a DataError: a bare Exception, or a panic, which is a BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise DataError(
            f"{problem}: {str(error)[:200]}.",
            "Give the complete tokenizer.json of the checkpoint (Hugging Face tokenizers format).",
        ) from error


def encode(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """Token ids of `text`, int64 `(tokens,)`, without any special tokens put around it."""
    return encode_text(tokenizer, text).ids


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text. Raises DataError when the tokenizer fails, as one without its unknown token does."""
    with _library_errors("The tokenizer cannot encode the text"):
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


@dataclass(frozen=True)
class Frame:
    """The ids that a tokenizer puts before and after a sentence: [CLS] and [SEP] of a BERT."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def around(self, ids: Sequence[int], length: int) -> list[int]:
        """A sentence within its frame; its end is lost where both are longer than `length` tokens."""
        return [*self.before, *ids[: length - len(self)], *self.after]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def find_frame(tokenizer: Tokenizer) -> Frame:
    """The frame of a tokenizer, from what it makes of a word. Raises DataError where it has none on either side."""
    with _library_errors("The tokenizer cannot encode a word"):
        encoding = tokenizer.encode("a", add_special_tokens=True)
    ids, words = encoding.ids, [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    frame = Frame(tuple(ids[: words[0]]), tuple(ids[words[-1] + 1 :])) if words else Frame()
    if not frame.before or not frame.after:
        raise DataError(
            "The tokenizer puts no tokens around a sentence, and the network reads them: [CLS] and [SEP] of a BERT.",
            "Give the tokenizer.json that the network was saved with: its post-processor adds them.",
        )
    return frame


@dataclass(frozen=True, eq=False)
class EncodedText:
    """A text and its token ids, encoded piece by piece; `starts[p]` is the first token of piece `p`."""

    tokenizer: Tokenizer
    pieces: tuple[str, ...]
    starts: tuple[int, ...]
    ids: torch.Tensor  # int64 (tokens,)

    def bytes_until(self, token: int) -> int:
        """UTF-8 bytes of the text up to the end of the token at the index `token`.

        A token that ends within a character counts the whole character.
        """
        piece = bisect_right(self.starts, token) - 1
        encoding = self.tokenizer.encode(self.pieces[piece], add_special_tokens=False)
        _, end = encoding.token_to_chars(token - self.starts[piece]) or (0, 0)
        before = sum(len(text.encode()) for text in self.pieces[:piece])
        return before + len(self.pieces[piece][:end].encode())


def encode_text(tokenizer: Tokenizer, text: str, limit: int | None = None) -> EncodedText:
    """Encode `text`, or only its first pieces that give `limit` tokens or more.

    The pieces are cut where a byte-level pre-tokenizer cuts anyway, so the ids are those of the whole text,
    in a tenth of the memory. A tokenizer of another kind takes the text as one piece.
    """
    pieces, starts, ids = [], [], array("q")
    for piece in _pieces(text) if _is_byte_level(tokenizer) else [text]:
        pieces.append(piece)
        starts.append(len(ids))
        ids.extend(encode_all(tokenizer, [piece])[0])
        if limit is not None and len(ids) >= limit:
            break
    return EncodedText(tokenizer, tuple(pieces), tuple(starts), torch.tensor(ids, dtype=torch.int64))


def _pieces(text: str) -> Iterator[str]:
    """Cut `text` after line ends that stand between one white-space character, or none, and a word."""
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + PIECE)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    kind = tokenizer.pre_tokenizer
    return isinstance(kind, pre_tokenizers.ByteLevel) and not kind.add_prefix_space and kind.use_regex


def check_vocabulary(largest: int, vocabulary_size: int | None) -> None:
    """Raise TaskError when the id `largest` is not in a vocabulary of this size (None: not known)."""
    if vocabulary_size is not None and largest >= vocabulary_size:
        raise TaskError(
            f"The tokenizer gives the id {largest:,}, but the model's vocabulary has {vocabulary_size:,} tokens.",
            "Give the tokenizer that the model was trained with (--tokenizer FILE).",
        )


def describe_tokenizer(tokenizer: Tokenizer) -> str:
    """How many tokens it has, and the start of its digest: `4,096 tokens, sha256 1a2b3c4d`."""
    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return f"{tokenizer.get_vocab_size():,} tokens, sha256 {digest[:8]}"


def padding_id(tokenizer: Tokenizer) -> int:
    """Id of `<|padding|>`, or 0 where the tokenizer has none (a mask hides the padding in any case)."""
    found = tokenizer.token_to_id(PADDING)
    return 0 if found is None else int(found)
