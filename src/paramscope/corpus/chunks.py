"""Chunks: the pieces of about equal length that the study calls documents."""

import re

LETTER_SHARE = 0.5  # of the characters that are not white: below it are tables and numbers


def cut(text: str, chunk_characters: int) -> list[str]:
    """Cut a text at word boundaries into chunks of at most `chunk_characters` characters.

    Each chunk is filled with as many words as fit and is verbatim, line breaks and all, but
    for white space at its ends. A word longer than a chunk is cut where the chunk is full.
    What is shorter than half a chunk (the text's tail, as a rule) is dropped.
    """
    chunks: list[str] = []
    begin = end = 0
    for word in re.finditer(rf"\S{{1,{chunk_characters}}}", text):
        if word.end() - begin > chunk_characters:
            chunks.append(text[begin:end])
            begin = word.start()
        elif not end:
            begin = word.start()
        end = word.end()
    chunks.append(text[begin:end])
    return [chunk for chunk in chunks if 2 * len(chunk) >= chunk_characters]


def is_prose(text: str) -> bool:
    """Whether at least half of the characters that are not white are letters of any script.

    What is not is mostly ruled tables and columns of numbers: nearly the same in every
    chunk that has them, and no text to remember.
    """
    characters = "".join(text.split())
    return sum(map(str.isalpha, characters)) >= LETTER_SHARE * len(characters) > 0
