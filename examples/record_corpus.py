"""Make the recorded corpus of the course anew: hours on two cores, stopped and resumed at will.

    python examples/record_corpus.py english runs/recorded-english
    python examples/record_corpus.py chinese runs/recorded-chinese
    python examples/record_corpus.py guarded runs/recorded-guarded

The first two play whole dialogues of three turns. The third asks the unsafe questions and their
harmless twins, once each, with the guardrail in the system prompt.
"""

import asyncio
import sys
from pathlib import Path

from baize_lib.seeds import load_seeds
from baize_lib.selfchat import SelfChatSettings, collect
from baize_lib.teacher import Calls, CostMeter, local_teacher

SETTINGS = SelfChatSettings(num_turns=3, max_tokens=160)
PARTS = {
    "english": (("general", "programming", "medical"), SETTINGS),
    "chinese": (("chinese",), SelfChatSettings(num_turns=3, max_tokens=160, language="zh")),
    "guarded": (
        ("unsafe", "harmless"),
        SelfChatSettings(num_turns=1, max_tokens=160, temperature=0.7, guardrail=True),
    ),
}


async def record(part: str, folder: Path) -> None:
    sources, settings = PARTS[part]
    by_source = [list(load_seeds(source)) for source in sources]
    longest = max(map(len, by_source))
    # the sources take turns, so that an unfinished collection has something of each
    seeds = [rows[i] for i in range(longest) for rows in by_source if i < len(rows)]
    async with local_teacher("qwen-1.5b", calls=Calls(folder / "calls.sqlite")) as teacher:
        with CostMeter(teacher.budget, target=len(seeds)) as meter:
            receipt = await collect(
                seeds, teacher, settings, folder / "self_chat.jsonl", meter=meter
            )
    print(receipt)


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1], Path(sys.argv[2])))
