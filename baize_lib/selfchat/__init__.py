"""A model talks to itself: dialogues from seeds, what they will cost and did cost."""

from baize_lib.selfchat.bill import bill_by_role_and_turn, forecast
from baize_lib.selfchat.collect import collect
from baize_lib.selfchat.prompts import SelfChatSettings, system_prompt, transcript_messages
from baize_lib.selfchat.strategies import self_chat

__all__ = [
    "bill_by_role_and_turn", "forecast", "collect", "SelfChatSettings", "system_prompt",
    "transcript_messages", "self_chat",
]  # fmt: skip
