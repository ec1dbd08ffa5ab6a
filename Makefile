# The course's commands. A fresh machine needs Python 3.11 to 3.14 and make; nothing else.
#   make course   set up, run all notebooks at TIER (laptop), HTML index and receipt in runs/course/
#   make bonus    the longer experiments of notebooks/bonus/, on the course's run
#   make test     set up, lint, doctests, tests, and every notebook at tier ci
#   make lab      JupyterLab on the course
#   make demo     a page to chat with what you trained
#   make serve    the same for programs: OpenAI's API on port 8000 of this machine
#   make render   run again; outputs into notebooks/ (in both languages), figures into figures/
#   make slides   the notebooks' figures and key points as slides, in runs/course/slides.html
#   make site     the course as a site in English and Chinese, in runs/site/; runs no notebook
#   make badge OWNER=name/repository   write the address of your copy wherever the course names it
#              (VERSION=v1.0 too: its notebooks then install that tag)
#   make clean    remove what a command can make again; runs you made stay
# TIER is ci, laptop, t4 or a100; BAIZE_TIER in the environment counts too.
# Linux without a GPU: add TORCH_INDEX=https://download.pytorch.org/whl/cpu to fetch the small torch.
TIER ?= $(or $(BAIZE_TIER),laptop)
export BAIZE_TIER := $(TIER)
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1 \
  && command -v $$p && break; done)
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/ready
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --only-binary=:all: -c constraints.txt
# notebooks in CI must not reach out; a paid teacher is never called by a test;
# those in notebooks/zh/ have the same code and are not run again
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help course bonus test lab render clean demo serve slides site badge
help:
	@sed -n '2,15s/^# *//p' Makefile

course: $(READY)
	@$(BIN)/baize run

bonus: $(READY)
	@$(BIN)/baize run --bonus

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(OFFLINE) $(BIN)/python -m pytest -q
	rm -rf runs/ci-notebooks
	$(OFFLINE) BAIZE_TIER=ci BAIZE_RUN=ci-notebooks $(BIN)/python -m pytest -q -p no:doctest \
	  --nbmake --override-ini=addopts= --nbmake-timeout=900 \
	  --ignore=notebooks/zh notebooks

lab: $(READY)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

render: $(READY)
	@$(BIN)/baize render

demo: $(READY)
	@$(BIN)/python -c 'import gradio' 2>/dev/null || $(PIP) -e '.[demo]'
	@$(BIN)/baize chat

serve: $(READY)
	@$(BIN)/baize serve

slides: $(READY)
	@$(BIN)/python .ci/slides.py

site: $(READY)
	@rm -rf runs/site
	@for language in en zh; do BAIZE_LANG=$$language $(BIN)/sphinx-build -q -W --keep-going \
	  -c .ci/site -d runs/site/.parsed/$$language . runs/site/$$language || exit 1; done
	@rm -rf runs/site/.parsed && cp .ci/site/index.html runs/site/
	@echo "open runs/site/index.html"

badge:
	@test -n "$(OWNER)" || { echo "say whose copy: make badge OWNER=name/repository"; exit 1; }
	@$(PYTHON) .ci/badge.py "$(OWNER)" "$(VERSION)"

clean:
	rm -rf $(VENV) runs/course runs/ci-notebooks .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Kept: your other runs in runs/, and the models in the user cache."

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No usable Python found: the course needs Python 3.11 to 3.14 \
	with its venv module (Debian/Ubuntu: apt install python3-venv). Then run make again, or name \
	one: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON): a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(BIN)/python -m ensurepip  # uv brings none
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@$(PIP) -e '.[lab,test,gpu,site]'
	@touch $@
