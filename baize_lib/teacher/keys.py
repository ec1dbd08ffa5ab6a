"""Where an API key is looked for; it is kept as pydantic's SecretStr, which shows itself to nobody.

>>> as_key("sk-the-real-thing")
SecretStr('**********')
"""

import getpass
import os
import re
import sys

from pydantic import SecretStr

from baize_lib.config import BaizeError
from baize_lib.teacher.errors import KeyRejected


def as_key(text: str) -> SecretStr:
    """`text` without the space around it.

    Raises:
        KeyRejected: it is empty, or holds a character that no key has.
    """
    if not re.fullmatch(r"[!-~]+", text.strip()):
        raise KeyRejected(
            "the API key is empty or holds a character no key has (a space, a line break, a "
            "letter outside ASCII): copy it again",
            kind="bad key",
        )
    return SecretStr(text.strip())


def find_key(*, needed: bool = True) -> SecretStr | None:
    """The key: from `OPENAI_API_KEY`, Colab's secrets, or typed in where someone can type.

    A server that may do without one does not need it: then nobody is asked to type it.

    Raises:
        BaizeError: there is none; the text says where to put it.
    """
    if found := os.environ.get("OPENAI_API_KEY") or _colab_secret():
        return as_key(found)
    if not needed:
        return None
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    if getattr(kernel, "_allow_stdin", False) or (kernel is None and sys.stdin.isatty()):
        return as_key(getpass.getpass("OpenAI API key (not shown, not stored): "))
    raise BaizeError(
        "no OPENAI_API_KEY in the environment: set it, or use a teacher on this machine with "
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
