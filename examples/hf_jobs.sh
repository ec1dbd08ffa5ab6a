#!/usr/bin/env bash
# The same as a job of Hugging Face's (paid by the minute): bash examples/hf_jobs.sh you/your-chatbot
# Its files are gone when it ends, so the last line pushes the adapter to your account, privately.
# It has not been run: no account was at hand.
set -euo pipefail
course=https://github.com/baize-course/baize-course
hf jobs run --flavor h200 --timeout 3h --secrets HF_TOKEN python:3.12 bash -c "
  set -e
  git clone --depth 1 $course course && cd course
  pip install --quiet -c constraints.txt -e '.[gpu]'
  bash examples/one_card.sh
  hf upload $1 runs/one-card/adapter --private"
