"""Take secrets, and what users wrote, out of a text that others are to read.

Logs of engines, answers of servers and messages of libraries pass through here before they become a message, a
record or a notice. What looks like none of these forms is not known for a secret: this is a net, and no licence to
write secrets into a command line.
"""

from __future__ import annotations

import re

_HIDDEN = "***"
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
# Names under which a secret is given: in a command line, a dict, JSON, a header, a shell.
_NAME = r"(?<![a-z0-9])(?:api[-_]?keys?|token|passw(?:or)?d|secret|private[-_]key)"
_LITERAL = rf"\[[^\]]*\]?|{_QUOTED}"
_WORD = r"(?!\*\*\*)[^\s\"',]+"
_LIKELY = r"(?=[^\s\"',]*\d)[^\s\"',]{8,}"  # a sentence goes on after a colon, too

# What gives a secret away, and words of which one is in each text that a form fits: most texts have none of them.
_SECRETS = ("key", "token", "passw", "secret")
_FORMS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (words, re.compile(form, re.IGNORECASE | re.DOTALL))
    for words, form in (
        # An engine that logs its requests: vllm/entrypoints/logger.py writes their texts as Python literals.
        (("prompt: ", "output: "), rf"(?P<kept>\b(?:prompt|output): )(?:{_QUOTED})"),
        (("_token_ids: ",), r"(?P<kept>\b(?:prompt|output)_token_ids: )\[[^\]]*\]?"),
        (("private key-----",), r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
        (("bearer", "basic"), r"(?P<kept>\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}"),
        (_SECRETS, rf"(?P<kept>{_NAME}[\"']?\s*=\s*)(?:{_LITERAL}|{_WORD})"),
        (_SECRETS, rf"(?P<kept>{_NAME}[\"']?\s*:\s*)(?:{_LITERAL}|{_LIKELY})"),
        (_SECRETS, rf"(?P<kept>--(?:[a-z]+-)?{_NAME}[\"']?(?:\s*,)?\s+)(?:{_LITERAL}|{_WORD})"),
        (("://",), r"(?P<kept>\b[a-z][a-z0-9+.-]*://)[^\s/@'\"]+@"),  # an address with a user and a password
        (("://hooks.",), r"(?P<kept>\bhttps://hooks\.[\w.-]+/)[^\s'\")]+"),  # of a webhook, whose path is its key
        # By its beginning: Hugging Face, vLLM as OpenAI, Google, GitHub, GitLab, Slack, a JWT.
        (("hf_",), r"\bhf_[a-z0-9_]{8,}"),
        (("sk-",), r"\bsk-[\w-]{8,}"),
        (("ya29.",), r"\bya29\.[\w.-]+"),
        (("aiza",), r"\bAIza[\w-]{20,}"),
        (("gh", "glpat", "xox"), r"\b(?:gh[pousr]|github_pat|glpat|xox[abeprs])[_-][\w-]{8,}"),
        (("eyj",), r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"),
    )
)


def masked(text: str) -> str:
    """Return a text without the keys, tokens, passwords, prompts and answers that it shows."""
    plain = text.casefold()
    for words, form in _FORMS:
        if any(word in plain for word in words):
            text = form.sub(_mask, text)
    return text


def _mask(found: re.Match[str]) -> str:
    return found.groupdict().get("kept", "") + _HIDDEN
