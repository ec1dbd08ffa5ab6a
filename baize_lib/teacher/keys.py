"""An API key that shows itself to nobody, and the places to look for one.

>>> Secret("sk-the-real-thing")
<secret>
"""

import getpass
import os
import re
import sys
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.teacher.errors import KeyRejected

__all__ = [
    "Secret",
    "find_key",
]


class Secret:
    """A key that shows itself to nobody: print, repr, format and pickle give no part of it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value.strip()
        if not re.fullmatch(r"[!-~]+", self._value):
            raise KeyRejected(
                "the API key is empty or holds a character no key has (a space, a line break, a "
                "letter outside ASCII): copy it again",
                kind="bad key",
            )

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not to be pickled")


def find_key() -> Secret:
    """OpenAI's key: from `OPENAI_API_KEY`, Colab's secrets, or typed in where someone can type.

    Raises:
        BaizeError: there is none; the text says where to put it.
    """
    if found := os.environ.get("OPENAI_API_KEY") or _colab_secret():
        return Secret(found)
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    kernel = getattr(shell, "kernel", None)
    if getattr(kernel, "_allow_stdin", False) or (kernel is None and sys.stdin.isatty()):
        return Secret(getpass.getpass("OpenAI API key (not shown, not stored): "))
    raise BaizeError(
        "no OPENAI_API_KEY in the environment: set it, or use the embedded teacher with "
        "BAIZE_TIER=laptop"
    )


def _colab_secret() -> str | None:
    if "google.colab" not in sys.modules:
        return None
    from google.colab import userdata

    try:
        return userdata.get("OPENAI_API_KEY")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return None
