"""A packed model as one image for a device, with the C header that says what lies where (`native/qslm.h`).

The image is the files of the model one after the other, as they are, each from a multiple of 64 on: nothing of it is
read before the engine reads the files where they lie.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qslm import _native, artifact, folders
from qslm.errors import ArtifactError, QslmError
from qslm.folders import ASSEMBLY, CONFIG, EXPORTED, HEADER, IMAGE, LARGEST_JSON, MODEL, TOKENIZER
from qslm.formats.reading import read_bytes
from qslm.formats.staging import Staged, commit, discard, stage_bytes
from qslm.runtime.engine import Engine
from qslm.units import MiB

LINE = 64  # bytes that a part begins at a multiple of
CODE_BYTES = 120_000  # of flash for the engine and an example, at most: native/tests/embedded.sh holds them to it
PROGRAM_BYTES = 20_000  # of RAM for a stack of 16,384 and the variables of both: the same
DRAWING_BYTES = 8  # of RAM an output: its logit, and its place in the order in which tokens are drawn


@dataclass(frozen=True)
class Target:
    """What an image is made for. flash, ram: bytes that it has, None where that is not limited here."""

    name: str
    about: str
    flash: int | None = None
    ram: int | None = None


TARGETS = {
    target.name: target
    for target in (
        Target("generic", "any machine with a C11 compiler"),
        Target("aarch64-linux", "64-bit ARM under Linux"),
        Target("mps2-an386", "Arm MPS2+, image AN386: Cortex-M4", 4 * MiB, 4 * MiB),
        Target("mps2-an500", "Arm MPS2+, image AN500: Cortex-M7", 4 * MiB, 4 * MiB),
    )
}


@dataclass(frozen=True)
class Part:
    """A file in the image: `size` bytes from `offset` on."""

    file: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Export:
    """An image, and what running it takes, in bytes.

    memory_bytes, tokenizer_bytes: of the arena, at a chunk of one token, at most. state_bytes: of them, what is carried
    from token to token. flash, ram: all that a program needs: image and code; arena, logits and stack.
    """

    target: Target
    parts: tuple[Part, ...]
    image_bytes: int
    vocabulary: int
    classes: int
    memory_bytes: int
    tokenizer_bytes: int
    state_bytes: int
    flash: int
    ram: int


def find_target(name: str) -> Target:
    """The target of that name. Raises QslmError, which names all of them."""
    if name not in TARGETS:
        raise QslmError(f"There is no target {name!r}.", f"Choose one of: {', '.join(TARGETS)}.")
    return TARGETS[name]


def export(model: Path | str, output: Path | str, target: Target = TARGETS["generic"]) -> Export:
    """Write the packed model `model` for `target` into the folder `output`: model.bin, model.h and model.S.

    An export that was there is replaced. Raises ArtifactError where the model is damaged, or none that the engine runs,
    and QslmError where it does not fit or the folder holds something else.
    """
    output = folders.check(output, "exporting")
    packed = artifact.read(model)
    engine = Engine(packed.folder, threads=1, chunk=1)
    contents = _contents(packed)
    tokenizer = packed.tokenizer_json
    found = describe(
        target,
        contents,
        vocabulary=engine.vocabulary_size,
        classes=engine.classes or 0,
        memory_bytes=engine.arena_bytes,
        tokenizer_bytes=0 if tokenizer is None else _tokenizer_bytes(tokenizer, packed.folder),
        state_bytes=engine.state_bytes,
    )
    check_room(found)
    _write(output, {IMAGE: image_of(found.parts, contents), HEADER: header_of(found), ASSEMBLY: _ASSEMBLY.encode()})
    return found


def describe(
    target: Target,
    contents: Sequence[tuple[str, bytes]],
    *,
    vocabulary: int,
    classes: int,
    memory_bytes: int,
    tokenizer_bytes: int,
    state_bytes: int,
) -> Export:
    """Lay the files `contents`, (name, bytes), out, and add up what they take."""
    parts, end = [], 0
    for file, content in contents:
        offset = _up(end)
        parts.append(Part(file, offset, len(content), hashlib.sha256(content).hexdigest()))
        end = offset + len(content)
    return Export(
        target=target,
        parts=tuple(parts),
        image_bytes=_up(end),
        vocabulary=vocabulary,
        classes=classes,
        memory_bytes=memory_bytes,
        tokenizer_bytes=tokenizer_bytes,
        state_bytes=state_bytes,
        flash=_up(end) + CODE_BYTES,
        ram=memory_bytes + tokenizer_bytes + DRAWING_BYTES * (classes or vocabulary) + PROGRAM_BYTES,
    )


def check_room(export: Export) -> None:
    """Raise QslmError, with the numbers, where a target has not enough flash or RAM."""
    target = export.target
    for kind, needed, there in (("flash", export.flash, target.flash), ("RAM", export.ram, target.ram)):
        if there is not None and needed > there:
            raise QslmError(
                f"{target.name} has {there:,} bytes of {kind}, the model needs {needed:,}.",
                "Pack it smaller (qslm search ... --max-memory), or choose another --target.",
            )


def image_of(parts: Sequence[Part], contents: Sequence[tuple[str, bytes]]) -> bytes:
    """The files at their places, with zeros between them and up to a multiple of 64."""
    image = bytearray(_up(parts[-1].offset + parts[-1].size))
    for part, (_, content) in zip(parts, contents, strict=True):
        image[part.offset : part.offset + part.size] = content
    return bytes(image)


def header_of(export: Export) -> bytes:
    """The C header of an image: constants, and where the files lie in it."""
    prefixes = {MODEL: "FILE", CONFIG: "CONFIG", TOKENIZER: "TOKENIZER"}
    lines = [f"{EXPORTED.decode()} for {export.target.name}: what lies where in {IMAGE}, and what running it takes."]
    lines += ["#ifndef MODEL_H", "#define MODEL_H", "", '#include "qslm.h"', ""]
    lines += [f"#define MODEL_IMAGE_SIZE {export.image_bytes}"]
    for part in export.parts:
        name = f"MODEL_{prefixes[part.file]}"
        lines += [f"#define {name}_OFFSET {part.offset} // {part.file}", f"#define {name}_SIZE {part.size}"]
        lines += [f'#define {name}_SHA256 "{part.sha256}"']
    lines += [
        "",
        f"#define MODEL_VOCABULARY {export.vocabulary}",
        f"#define MODEL_CLASSES {export.classes} // 0 for a language model",
        f"#define MODEL_MEMORY {export.memory_bytes} // of an arena, in bytes: qslm_load at a chunk of 1, at most",
        f"#define MODEL_TOKENIZER_MEMORY {export.tokenizer_bytes} // qslm_load_tokenizer",
        f"#define MODEL_STATE_BYTES {export.state_bytes} // of qslm_save_state",
        "",
        f"extern const uint8_t model_image[MODEL_IMAGE_SIZE]; // where {ASSEMBLY} is linked",
        "",
        "// The files of an image, wherever it lies.",
    ]
    for part in export.parts:
        prefix = prefixes[part.file]
        lines += [
            f"static inline qslm_bytes model_{prefix.lower()}(const uint8_t *image) {{",
            f"    const qslm_bytes part = {{image + MODEL_{prefix}_OFFSET, MODEL_{prefix}_SIZE}};",
            "    return part;",
            "}",
        ]
    return "\n".join([*lines, "", "#endif", ""]).encode()


_ASSEMBLY = f"""\
{EXPORTED.decode()}: the image as constant data, which C knows as model_image. This folder is to be an include path.
    .section .model, "a"
    .global model_image
    .balign {LINE}
model_image:
    .incbin "{IMAGE}"
#if defined(__linux__)
    .section .note.GNU-stack, "", %progbits
#endif
"""


def _up(size: int) -> int:
    return (size + LINE - 1) // LINE * LINE


def _contents(packed: artifact.Artifact) -> list[tuple[str, bytes]]:
    """The files of a packed model that has been read; what has changed since is refused."""
    files = [(MODEL, packed.file_bytes), (CONFIG, LARGEST_JSON)]
    if packed.tokenizer_json is not None:
        files.append((TOKENIZER, LARGEST_JSON))
    contents = [(name, read_bytes(packed.folder / name, limit)) for name, limit in files]
    if (
        hashlib.sha256(contents[0][1]).hexdigest() != packed.sha256
        or artifact.read(packed.folder).config != packed.config
    ):
        raise ArtifactError(f"{packed.folder} changed while it was read.", "Export it again.")
    return contents


def _tokenizer_bytes(text: str, folder: Path) -> int:
    try:
        return _native.Tokenizer(text.encode()).arena_bytes + LINE
    except ValueError as error:
        raise ArtifactError(
            f"{folder / TOKENIZER}: {str(error).rstrip('.')}.", "The engine reads byte-level BPE as GPT-2's."
        ) from error


def _write(folder: Path, files: dict[str, bytes]) -> None:
    staged: list[Staged] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            staged.append(stage_bytes(folder / name, content))
    except BaseException:
        discard(staged)
        raise
    commit(staged)
