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
from typing import Annotated

import typer

from baize_lib.chat.demo import open_page
from baize_lib.chat.model import open_chat
from baize_lib.chat.server import serve
from baize_lib.config import BaizeError, Run
from baize_lib.corpus.filters import apply_filters, whole_turns
from baize_lib.corpus.formats import read_dialogues
from baize_lib.corpus.split import export
from baize_lib.course import runner
from baize_lib.course.environment import check_environment
from baize_lib.course.receipt import check_receipt, write_receipt
from baize_lib.course.tiers import Tier, current_tier, open_run, run_folder
from baize_lib.evaluation.attempts import ask
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.models.base import load_base
from baize_lib.seeds.clean import load_seeds, mix
from baize_lib.selfchat.collect import collect
from baize_lib.teacher.batch import BatchTeacher
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.local import teacher_for
from baize_lib.teacher.meter import CostMeter
from baize_lib.training.fit import fit

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


@app.command("check")
def check_machine(
    receipt: Annotated[Path | None, typer.Argument(help="a receipt.json to check")] = None,
    run: Annotated[str | None, typer.Option(help="the run it is held against")] = None,
    tier: TierName = None,
) -> None:
    """Look at this machine: Python, packages, key, memory, disk, GPU. Or check a receipt."""
    if receipt:
        print(check_receipt(receipt, run))
        return
    report = check_environment()
    print(report)
    raise typer.Exit(0 if report.ok else 1)


@app.command("run")
def run_notebooks(
    notebooks: Notebooks = None,
    bonus: Annotated[bool, typer.Option(help="the notebooks of notebooks/bonus/")] = False,
    tier: TierName = None,
) -> None:
    """Run the notebooks into runs/course/, with an index page and a receipt."""
    runner.run_course(notebooks or (), bonus=bonus)


@app.command("receipt")
def hand_in(tier: TierName = None, name: RunName = None) -> None:
    """Write receipt.txt and receipt.json of the run into runs/course/, as it is now."""
    run = Run(run_folder(current_tier()))
    if not run.path.is_dir():
        raise BaizeError(f"there is no run {run.path}: name another with --run, or make one")
    print(write_receipt(run))


@app.command("render")
def render_notebooks(notebooks: Notebooks = None, tier: TierName = None) -> None:
    """Run the notebooks and write their outputs into notebooks/ and figures/."""
    runner.render_course(notebooks or ())


@app.command("collect")
def collect_dialogues(
    seeds: Annotated[str | None, typer.Argument(help="a set, file or folder of questions")] = None,
    num: Annotated[int | None, typer.Option(min=1, help="so many of them")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="at half price, within a day")] = False,
    tier: TierName = None, teacher: Teacher = None, name: RunName = None,
) -> None:  # fmt: skip
    """Let the teacher chat with itself about each question; run it again to go on."""
    now, run = _begin()
    asked = list(load_seeds(seeds, num) if seeds else mix(now.seed_mix, num or now.num_seeds))
    paid = {"price": now.price, "calls": Calls(run.calls_file, now.budget_usd)}
    if batch:
        answering = BatchTeacher(now.teacher, **paid)
    else:
        answering = teacher_for(now.teacher, max_calls=now.max_calls, **paid)

    async def job() -> object:
        async with answering as who:
            with CostMeter(who.budget, target=len(asked)) as meter:
                return await collect(asked, who, now.selfchat, run.self_chat, meter=meter)

    print(asyncio.run(job()))


@app.command("train")
def train_student(tier: TierName = None, student: Student = None, name: RunName = None) -> None:
    """Train the student on the run's dialogues."""
    now, run = _begin()
    if not run.train_file.is_file():
        export(run, apply_filters(map(whole_turns, read_dialogues(run.self_chat))), validation=0.2)
    corpus = [list(read_dialogues(path)) for path in (run.train_file, run.validation_file)]
    base = load_base(now.student, now.precision)
    result = fit(base, *corpus, run.adapter_dir, now.training, on_step=print)
    print(f"{result.num_tokens:,} tokens in {result.seconds:.0f} s; baize evaluate, baize chat")


@app.command("evaluate")
def evaluate_student(
    adapter: Adapter = None, tier: TierName = None, student: Student = None, name: RunName = None
) -> None:
    """Ask base, own layout and trained student the article's questions; first attempts only."""
    prompts, (now, run) = load_prompts(origin="article", language="en"), _begin()
    chat = open_chat(run, now.student, now.precision, adapter)
    options = {"max_tokens": now.evaluation.max_tokens, "temperature": 0.0}
    answers = ask(chat, prompts, log=run.answers_file, **options)
    for prompt in prompts:
        print(f"\n{' / '.join(prompt.turns)}")
        for answer in answers:
            if answer.prompt == prompt.id:
                print(f"  {answer.model:<11} {' / '.join(answer.replies)}")


@app.command("chat")
def chat_page(
    adapter: Adapter = None, tier: TierName = None, student: Student = None, name: RunName = None
) -> None:
    """Open a page on this machine to chat with what was trained."""
    now, run = _begin()
    open_page(open_chat(run, now.student, now.precision, adapter), run)


@app.command("serve")
def serve_student(
    adapter: Adapter = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="on this machine only")] = 8000,
    tier: TierName = None, student: Student = None, name: RunName = None,
) -> None:  # fmt: skip
    """Serve what was trained to programs that speak OpenAI's API."""
    now, run = _begin()
    serve(open_chat(run, now.student, now.precision, adapter), port=port)


def _begin() -> tuple[Tier, Run]:
    tier = current_tier()
    return tier, open_run(tier)


def baize() -> None:
    """The console command; an error that a user can act on is printed without a traceback."""
    try:
        app()
    except BaizeError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    baize()
