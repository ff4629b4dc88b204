"""Near-duplicates: texts that share a run of words with an earlier one."""

import re
from collections.abc import Iterable
from hashlib import blake2b

GRAM_WORDS = 12


def without_near_duplicates(texts: Iterable[str], gram_words: int = GRAM_WORDS) -> list[str]:
    """Keep the texts that share no run of `gram_words` words with a text already kept.

    Of texts that overlap the first stays; afterwards no two of them have 12 words in a row
    in common, whatever their case, punctuation and white space. A text of fewer words counts
    as one run; a text without a word is dropped. One shared run is the strictest threshold on
    n-gram overlap (cf. Duan et al. 2024, arXiv:2402.07841, on overlap of non-members with
    training text): a member must not be told by a sentence that a non-member has as well.
    """
    seen: set[bytes] = set()
    kept: list[str] = []
    for text in texts:
        grams = word_grams(text, gram_words)
        if grams and seen.isdisjoint(grams):
            kept.append(text)
            seen |= grams
    return kept


def word_grams(text: str, gram_words: int = GRAM_WORDS) -> set[bytes]:
    """64-bit hashes of a text's runs of `gram_words` words; of all its words if it has fewer."""
    words = re.findall(r"\w+", text.casefold())
    last = max(1, len(words) - gram_words + 1) if words else 0
    return {
        blake2b(" ".join(words[i : i + gram_words]).encode(), digest_size=8).digest()
        for i in range(last)
    }
