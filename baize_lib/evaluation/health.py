"""Is a reply in order, whatever it says? One row a model, each detector with its own error.

Whether a reply stopped by itself, was cut, or is empty is known from the log. The rest is detected
in its text, by the rules with which a corpus is looked through (`corpus.defects`); `health_errors`
says how often they are right on texts labelled by hand.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from baize_lib.config import data_dir
from baize_lib.corpus.defects import dangles, loops, speaks_for_both
from baize_lib.evaluation.attempts import Attempt
from baize_lib.files import read_jsonl
from baize_lib.text import language_of, words

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["health", "health_errors"]

DETECTORS: Mapping[str, Callable[[str, str], bool]] = {  # (text, language asked in) -> it has it
    "repetition": lambda text, _: bool(loops(text)),
    "voices": lambda text, _: bool(speaks_for_both(text) or dangles(text)),
    "language": lambda text, language: language_of(text) not in ("", language),
}


def health(attempts: Iterable[Attempt]) -> "pd.DataFrame":
    """Shares (0 to 1) over all replies, one row a model.

    stops: ended by itself. cut: ran into the token limit. empty: says nothing. repetition: goes
    round in circles. voices: went on to speak for the human, or shows a tag of some layout.
    language: another one than that of the question. tokens: mean length.
    """
    import pandas as pd

    rows = []
    for attempt, line in ((a, line) for a in attempts for line in a.turns):
        text, stopped = line["text"], line["stopped_by"]
        language = attempt.prompt.rpartition("-")[2]
        row = {"model": attempt.model, "replies": 1, "stops": stopped == "end"}
        row |= {"cut": stopped == "length", "empty": not words(text)}
        row |= {name: has(text, language) for name, has in DETECTORS.items()}
        row["voices"] |= stopped == "tag"
        rows.append(row | {"tokens": line["num_tokens"]})
    columns = ["model", "replies", "stops", "cut", "empty", *DETECTORS, "tokens"]
    frame = pd.DataFrame(rows, columns=columns).groupby("model", sort=False)
    return frame.mean().assign(replies=frame.size()).reset_index()


def health_errors() -> "pd.DataFrame":
    """Each detector against our labels: precision and recall, one row a detector."""
    import pandas as pd

    texts = list(read_jsonl(data_dir() / "evaluation" / "labelled_health.jsonl"))
    rows = []
    for name, has in DETECTORS.items():
        ill = [text for text in texts if name in text["faults"]]
        seen = [text for text in texts if has(text["text"], text["language"])]
        both = sum(text in ill for text in seen)
        rows.append((name, len(texts), len(ill), both / max(len(seen), 1), both / max(len(ill), 1)))
    return pd.DataFrame(rows, columns=["detector", "texts", "with it", "precision", "recall"])
