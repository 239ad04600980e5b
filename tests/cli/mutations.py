"""How option files and command lines go wrong: at the hands of a user, of an editor, of a disk, or on purpose."""

from __future__ import annotations

import random
from collections.abc import Callable

STRANGE = (
    *(
        "",
        "~",
        "3",
        "-1",
        "0",
        "1e400",
        "-.inf",
        ".nan",
        "true",
        "word",
        "[]",
        "[1, a]",
        "{}",
        "{a: {b: c}}",
        "2024-99-99",
    ),
    *(
        "!!python/object/apply:os.system [exit 3]",
        "!!python/name:os.system",
        "!!float x",
        "!!binary x",
        "&a [*a]",
        "*a",
    ),
    *(
        "'",
        '"',
        "|",
        ">",
        "? x",
        "- - -",
        "%YAML 9.9",
        "\u2028",
        "\ud7ff",
        "\x00",
        "ä",
        "../..",
        "/",
        "9" * 400,
        "x" * 3000,
    ),
    *(
        "0x1F",
        "0o17",
        "1_000",
        "12:30:45",
        "<<: *x",
        "{{}}",
        "%s",
        "{}",
        "$HOME",
        "None",
        "nul",
        "💥",
        "!!set {a}",
        "1e-4",
    ),
)


def mutated(text: str, chance: random.Random) -> str:
    """Return an option file with one to three things wrong."""
    lines = text.splitlines()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(EDITS)(lines, chance)
        lines = lines or [""]
    return "\n".join(lines) + "\n"


def _delete(lines: list[str], chance: random.Random) -> None:
    del lines[chance.randrange(len(lines))]


def _repeat(lines: list[str], chance: random.Random) -> None:
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))


def _swap(lines: list[str], chance: random.Random) -> None:
    one, two = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]


def _indent(lines: list[str], chance: random.Random) -> None:
    at = chance.randrange(len(lines))
    lines[at] = chance.choice((" ", "  ", "    ", "\t", "- ")) + lines[at]


def _unindent(lines: list[str], chance: random.Random) -> None:
    at = chance.randrange(len(lines))
    lines[at] = lines[at].lstrip()


def _other_value(lines: list[str], chance: random.Random) -> None:
    at = chance.randrange(len(lines))
    lines[at] = f"{lines[at].partition(':')[0]}: {chance.choice(STRANGE)}"


def _other_key(lines: list[str], chance: random.Random) -> None:
    at = chance.randrange(len(lines))
    key, colon, value = lines[at].partition(":")
    place = chance.randrange(len(key) + 1)
    garbled = (
        key[:place] + key[place + 1 :],
        key[:place] + chance.choice("abc_-X:") + key[place:],
        chance.choice(STRANGE),
    )
    lines[at] = chance.choice(garbled) + colon + value


def _other_letter(lines: list[str], chance: random.Random) -> None:
    at = chance.randrange(len(lines))
    place = chance.randrange(len(lines[at]) + 1)
    letter = chance.choice("{}[]:,&*#?|-<>=!%@`'\"\\~\t \n0aÄ")
    lines[at] = lines[at][:place] + letter + lines[at][place + chance.randrange(2) :]


def _cut(lines: list[str], chance: random.Random) -> None:
    del lines[chance.randrange(len(lines)) :]


EDITS: tuple[Callable[[list[str], random.Random], None], ...] = (
    *(_delete, _repeat, _swap, _indent, _unindent, _cut),
    *(_other_value, _other_value, _other_value, _other_key, _other_key, _other_letter, _other_letter),
)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return the file with wrong bytes in it, one time in twenty."""
    if chance.random() > 0.05:
        return content
    place = chance.randrange(len(content) + 1)
    return (
        content[:place]
        + chance.choice((b"\xff\xfe", b"\x00", b"\x80", b"\xef\xbb\xbf", b"\r", b"\x1b[31m"))
        + content[place:]
    )


def mutated_line(words: list[str], chance: random.Random) -> list[str]:
    """Return a command line with one or two things wrong."""
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(words)) if words else 0
        edit = chance.randrange(6)
        if edit == 0 and words:
            del words[at]
        elif edit == 1 and words:
            words.insert(at, words[chance.randrange(len(words))])
        elif edit == 2 and words:
            place = chance.randrange(len(words[at]) + 1)
            words[at] = words[at][:place] + chance.choice("-=:. x\u00e4") + words[at][place + chance.randrange(2) :]
        elif edit == 3:
            words.insert(
                at, chance.choice(("-opt", "-o", "--debugg", "--force_yml", "--launcher", "-", "--", "nowhere"))
            )
        elif edit == 4 and words:
            words[at] = chance.choice(
                (*STRANGE, ".", "..", "/", "photos", "broken.pth", "float.pth", "pams.yml", "/dev/null")
            )
        else:
            keys = chance.choice(
                ("quantization:bits", "train:total_iter", "name", "a:b", "train", "datasets:train:gt_size")
            )
            words += ["--force_yml", f"{keys}={chance.choice(STRANGE)}"]
    return [word for word in words if word != "--debug" and "\0" not in word] or ["train"]
