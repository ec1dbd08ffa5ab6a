"""The command `baize`: the steps of the course without the notebooks, on the same run folders.

    baize check                      # is this machine ready?
    baize run --tier ci              # the whole course, executed into runs/course/
    baize collect my-questions.txt   # self-chat about questions of your own
    baize train && baize evaluate && baize chat

Each step reads what the one before it wrote into the run's folder; `baize STEP --help` says more.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baize_lib.config import BaizeError, Run, data_dir
from baize_lib.course import runner
from baize_lib.course.environment import check_environment
from baize_lib.course.tiers import Tier, current_tier, open_run

if TYPE_CHECKING:
    from baize_lib.chat.model import ChatModel

__all__ = []

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Rebuild Baize: seeds, self-chat, LoRA training, evaluation, a chatbot.",
)  # fmt: skip


def _dial(flag: str, text: str) -> typer.models.OptionInfo:
    """An option that sets an environment variable, so that notebooks and libraries see it too."""
    variable = f"BAIZE_{flag.upper()}"

    def turn(value: str | None) -> str | None:
        if value:
            os.environ[variable] = value
        return value

    return typer.Option(f"--{flag}", callback=turn, help=f"{text} ({variable})")


TierName = Annotated[str | None, _dial("tier", "ci, laptop, t4 or a100")]
Teacher = Annotated[str | None, _dial("teacher", "who writes the dialogues")]
Student = Annotated[str | None, _dial("student", "who is trained on them")]
RunName = Annotated[str | None, _dial("run", "name of the run's folder")]
Adapter = Annotated[Path | None, typer.Option(help="adapter folder; else the run's, or data/")]
Notebooks = Annotated[list[str] | None, typer.Argument(help="only these, for example 04")]


@app.command()
def check(tier: TierName = None) -> None:
    """Look at this machine: Python, packages, key, memory, disk and GPU."""
    report = check_environment()
    print(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def run(
    notebooks: Notebooks = None,
    bonus: Annotated[bool, typer.Option(help="the notebooks of notebooks/bonus/")] = False,
    tier: TierName = None,
) -> None:
    """Run the notebooks into runs/course/, with an index page and a receipt."""
    runner.run_course(notebooks or (), bonus=bonus)


@app.command()
def render(notebooks: Notebooks = None, tier: TierName = None) -> None:
    """Run the notebooks and write their outputs into notebooks/ and figures/."""
    runner.render(notebooks or ())


@app.command()
def collect(
    seeds: Annotated[str | None, typer.Argument(help="a set, file or folder of questions")] = None,
    num: Annotated[int | None, typer.Option(help="so many of them")] = None,
    tier: TierName = None,
    teacher: Teacher = None,
    name: RunName = None,
) -> None:
    """Let the teacher chat with itself about each question; run it again to go on."""
    from baize_lib.seeds.clean import load_seeds, mix

    chosen, folder = _begin()
    mixed = not seeds
    questions = mix(chosen.seed_mix, num or chosen.num_seeds) if mixed else load_seeds(seeds, num)
    asyncio.run(_collect(list(questions), chosen, folder))


async def _collect(questions: list, tier: Tier, folder: Run) -> None:
    from baize_lib.selfchat.collect import collect
    from baize_lib.teacher.calls import Calls
    from baize_lib.teacher.local import teacher_for
    from baize_lib.teacher.meter import CostMeter

    async with teacher_for(
        tier.teacher, price=tier.price, max_calls=tier.max_calls,
        calls=Calls(folder.calls_file, tier.budget_usd),
    ) as teacher:  # fmt: skip
        with CostMeter(teacher.budget, target=len(questions)) as meter:
            print(await collect(questions, teacher, tier.selfchat, folder.self_chat, meter=meter))


@app.command()
def train(
    file: Annotated[Path | None, typer.Argument(help="a run file, as in data/training/")] = None,
    tier: TierName = None,
    student: Student = None,
    name: RunName = None,
) -> None:
    """Train the student on the run's dialogues, or as a YAML file says."""
    from baize_lib.training.fit import fit, main

    if file:
        raise typer.Exit(main([str(file)]))
    from baize_lib.corpus.filters import apply_filters, whole_turns
    from baize_lib.corpus.formats import read_dialogues
    from baize_lib.corpus.split import export
    from baize_lib.models.base import load_base

    tier_now, folder = _begin()
    if not folder.train_file.is_file():
        collected = map(whole_turns, read_dialogues(folder.self_chat))
        export(folder, apply_filters(collected), validation=0.2)
    corpus = [list(read_dialogues(path)) for path in (folder.train_file, folder.validation_file)]
    base = load_base(tier_now.student, tier_now.precision)
    fit(base, *corpus, folder.adapter_dir, tier_now.training, on_step=print)


@app.command()
def evaluate(
    adapter: Adapter = None, tier: TierName = None, student: Student = None, name: RunName = None
) -> None:
    """Ask base, own layout and trained student the article's questions; first attempts only."""
    from baize_lib.evaluation.attempts import ask
    from baize_lib.evaluation.prompts import load_prompts

    tier_now, folder = _begin()
    prompts = load_prompts(origin="article", language="en")
    options = {"max_tokens": tier_now.evaluation.max_tokens, "temperature": 0.0}
    chat = _chat_model(tier_now, folder, adapter)
    asked = ask(chat, prompts, log=folder.answers_file, **options)
    answers = {(a.prompt, a.model): a.replies for a in asked}
    for prompt in prompts:
        print(f"\n{' / '.join(prompt.turns)}")
        for model in ("base", "own layout", "tuned"):
            print(f"  {model:<11} {' / '.join(answers[prompt.id, model])}")


@app.command()
def chat(
    adapter: Adapter = None, tier: TierName = None, student: Student = None, name: RunName = None
) -> None:
    """Open a page on this machine to chat with what was trained."""
    from baize_lib.chat import demo

    tier_now, folder = _begin()
    demo.build(_chat_model(tier_now, folder, adapter)).launch()


@app.command()
def serve(
    adapter: Adapter = None,
    port: Annotated[int, typer.Option(help="on this machine only")] = 8000,
    tier: TierName = None,
    student: Student = None,
    name: RunName = None,
) -> None:
    """Serve what was trained to programs that speak OpenAI's API."""
    from baize_lib.chat import share

    tier_now, folder = _begin()
    share.serve(_chat_model(tier_now, folder, adapter), port=port)


def _begin() -> tuple[Tier, Run]:
    tier = current_tier()
    return tier, open_run(tier)


def _chat_model(tier: Tier, folder: Run, adapter: Path | None) -> "ChatModel":
    from baize_lib.chat.model import ChatModel
    from baize_lib.models.base import load_base

    own = folder.adapter_dir if folder.adapter_dir.is_dir() else data_dir() / "adapter"
    print(f"adapter: {(adapter or own).name} of {(adapter or own).parent.name}")
    return ChatModel(load_base(tier.student, tier.precision), {"tuned": adapter or own})


def main() -> None:
    """The console command; an error that a user can act on is printed without a traceback."""
    try:
        app()
    except BaizeError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
