"""The chatbot as a server: the plain openai client and the course's teacher client ask it."""

import asyncio
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import pytest
from test_chat import write_adapter

from baize_lib.chat.model import ChatModel
from baize_lib.chat.server import serve
from baize_lib.config import BaizeError
from baize_lib.models.base import load_base
from baize_lib.teacher import Teacher
from baize_lib.teacher.prices import FREE

ASKED = [{"role": "user", "content": "What is the capital of Tanzania?"}]
GREEDY = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_adapter(tmp_path_factory.mktemp("serve") / "adapter", 1)
    return ChatModel(load_base("smollm2-135m", "float32"), {"tuned": folder})


@pytest.fixture(scope="module")
def address(chat):
    return serve(chat, port=0, wait=False)


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def test_it_listens_on_this_machine_only_and_lists_its_models(client, address):
    assert address.startswith("http://127.0.0.1:")
    assert [model.id for model in client.models.list()] == ["base", "own layout", "tuned"]


@pytest.mark.parametrize("model", ["base", "own layout", "tuned"])
def test_a_reply_is_the_chat_models_own_with_its_tokens_counted(client, chat, model):
    expected = chat.reply(ASKED[0]["content"], model, **GREEDY)
    got = client.chat.completions.create(model=model, messages=ASKED, **GREEDY)
    assert got.choices[0].message.content == expected.text
    assert got.choices[0].finish_reason == "length"
    assert got.usage.completion_tokens == expected.num_tokens == 8
    assert got.usage.prompt_tokens == expected.num_read > 8


def test_a_stream_brings_the_same_reply_in_parts(client, chat):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(
        client.chat.completions.create(model="tuned", messages=ASKED, **GREEDY, **options)
    )
    parts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, parts)) == chat.reply(ASKED[0]["content"], "tuned", **GREEDY).text
    assert len(list(filter(None, parts))) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 8


def test_the_courses_own_teacher_client_talks_to_it(address, chat):
    async def ask():
        async with Teacher("tuned", base_url=address, price=FREE) as teacher:
            return await teacher.chat(ASKED, **GREEDY)

    reply = asyncio.run(ask())
    assert reply.text == chat.reply(ASKED[0]["content"], "tuned", **GREEDY).text
    assert reply.usage.output == 8


def test_many_clients_at_once_each_get_their_own_reply(client, chat):
    models = ["base", "tuned", "own layout"] * 3
    expected = {m: chat.reply("Hi", m, **GREEDY).text for m in set(models)}

    def ask(model):
        row = [{"role": "user", "content": "Hi"}]
        got = client.chat.completions.create(model=model, messages=row, **GREEDY)
        return got.choices[0].message.content

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, models)) == [expected[m] for m in models]


def test_parts_systems_and_stops_are_understood(client, chat):
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of Mali?"}]
    plain = [{"role": "system", "content": "Be kind."}]
    whole, split = (
        client.chat.completions.create(
            model="base", messages=[*plain, {"role": "user", "content": content}], **GREEDY
        ).choices[0].message.content
        for content in ("What is the capital of Mali?", parts)
    )  # fmt: skip
    assert whole == split
    stop = whole[3:6]
    cut = client.chat.completions.create(
        model="base", messages=[*plain, {"role": "user", "content": parts}], stop=stop, **GREEDY
    )
    assert cut.choices[0].message.content == whole[: whole.index(stop)].strip()
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "no model 'gpt-4' here: use base"),
        ({"messages": []}, openai.BadRequestError, "messages: List should have at least 1"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, openai.BadRequestError, "altern"),
        ({"messages": [{"role": "tool", "content": "a"}]}, openai.BadRequestError, "messages.0"),
        ({"temperature": -1}, openai.BadRequestError, "temperature: "),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens: "),
        ({"max_tokens": 10**6}, openai.BadRequestError, "exceeds the context"),
        ({"n": 2}, openai.BadRequestError, "n: "),
        ({"logprobs": True}, openai.BadRequestError, "logprobs: Extra inputs"),
        ({"extra_body": {"repeat_penalty": 1.2}}, openai.BadRequestError, "repeat_penalty"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name_and_the_server_goes_on(
    client, change, kind, says, stream
):
    asked = {"model": "base", "messages": ASKED, "max_tokens": 2, "stream": stream} | change
    with pytest.raises(kind, match=says):
        client.chat.completions.create(**asked)
    assert len(list(client.models.list())) == 3


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'"text"', b"null"])
def test_a_body_that_is_no_request_is_refused(address, body):
    import urllib.error
    import urllib.request

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/chat/completions", data=body)
    assert refused.value.code == 400
    assert json.load(refused.value)["error"]["message"]


def test_a_port_in_use_is_named_with_the_way_out(chat):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BaizeError, match=f"port {port} .* choose another, or 0"):
            serve(chat, port=port, wait=False)


class Slow:
    """A chatbot that writes a word every 20 ms."""

    def __init__(self):
        self.models, self.written = ("slow",), 0

    def follow(self, *asked, **options):
        for n in range(200):
            self.written = n
            yield "word ", SimpleNamespace(stopped_by="length", num_read=1, num_tokens=n)
            time.sleep(0.02)


def test_nothing_is_written_for_a_client_that_has_gone():
    slow = Slow()
    address = serve(slow, port=0, wait=False)
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model="slow", messages=ASKED, stream=True)
        next(iter(stream))
        stream.close()
    time.sleep(0.5)
    so_far = slow.written
    time.sleep(0.5)
    assert slow.written == so_far < 199
