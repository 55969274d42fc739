"""Find notions in texts: as whole words or phrases, in any regular inflection ("carry" in "carried")."""

import re
from functools import lru_cache


@lru_cache(maxsize=2**12)
def whole_phrase(notion: str) -> str:
    """Return a pattern for the notion as whole words, in any form, with any white space between them; "" for none.

    If the notion begins or ends with a letter or digit, no other may stand next to it there: "art" is not in "party",
    but "+" is in "9+8".
    """
    words = notion.casefold().split()
    if not words:
        return ""
    before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
    return before + r"\s+".join("".join(map(_any_form, re.split(r"(\W+)", word))) for word in words) + after


def _any_form(word: str) -> str:
    """Return a pattern for the forms of a word, and for those of any word that it may itself be a form of."""
    bases = {base for cut in (1, 2, 3, 4) for end in ("", "e", "y") if word in inflections(base := word[:-cut] + end)}
    return f"(?:{'|'.join(map(re.escape, sorted(inflections(word).union(*map(inflections, bases)))))})"


def inflections(word: str) -> set[str]:
    """Return a word and its regular English forms: carry -> carry, carries, carried, carrying.

    This is a rule of spelling, without a dictionary, where the paper compares lemmas. It has limits. Only words of 3 to
    20 letters a to z have forms. Irregular forms (halves, matrices, found) and words that are derived (division) are
    missed, and what is spelled like a form counts as one: "united" of "unit", "evening" of "even", "news" of "new".
    """
    if not re.fullmatch("[a-z]{3,20}", word):
        return {word}
    if re.search("[^aeiou]y$", word):
        return {word, word[:-1] + "ies", word[:-1] + "ied", word + "ing"}
    if re.search("[aeiou].*[^e]e$", word):
        return {word, word + "s", word + "d", word[:-1] + "ing"}
    plurals = {word + "s"} if not re.search("(s|x|z|ch|sh)$", word) else set()
    plurals |= {word + "es"} if re.search("(s|x|z|ch|sh|o)$", word) else set()
    doubled = [word + word[-1]] if re.search("[aeiou][^aeiouwxy]$", word) else []  # flip, flipped
    single = [] if re.fullmatch("[^aeiou]*[aeiou][^aeiouwxy]", word) else [word]  # "hoped" is no form of "hop"
    return {word, *plurals, *(stem + end for stem in doubled + single for end in ("ed", "ing"))}


def stands(pattern: str, text: str) -> bool:
    """Tell whether a pattern of `whole_phrase` is found in a text, whatever its case."""
    return re.search(pattern, text.casefold()) is not None
