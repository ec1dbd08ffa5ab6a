#!/usr/bin/env bash
# The whole course on one rented card: a strong open teacher talks to itself in vLLM, then the same
# card trains a smaller student on it and asks both the article's questions.
#
#   bash examples/one_card.sh                     # on the machine with the card
#   sky launch examples/one_card.sky.yaml         # SkyPilot rents one
#   bash examples/hf_jobs.sh you/your-chatbot     # Hugging Face runs it as a job
#
# Both models are Apache-2.0. It has not been run: no such card was at hand. Running it again goes on
# where it stopped, as everything here does.
set -euo pipefail

teacher=${TEACHER:-Qwen/Qwen2.5-7B-Instruct}
export BAIZE_STUDENT=${STUDENT:-Qwen/Qwen2.5-1.5B}
export BAIZE_TIER=t4 BAIZE_RUN=${RUN:-one-card} # t4: one card, settings safe in half precision
dialogues=${DIALOGUES:-2000}

# The teacher, at an address that only this machine reaches. vLLM wants an environment of its own.
python3 -m venv /tmp/vllm && /tmp/vllm/bin/pip install --quiet vllm
/tmp/vllm/bin/vllm serve "$teacher" --host 127.0.0.1 --port 8000 --max-model-len 4096 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until curl --silent --fail http://127.0.0.1:8000/v1/models >/dev/null; do
  kill -0 $server # ends this script if the server has gone
  sleep 5
done

export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 BAIZE_TEACHER=$teacher
export BAIZE_TEACHER_PRICE=0/0 BAIZE_MAX_CALLS=256 # the card is paid by the hour, not by the token
baize collect --num "$dialogues"

kill $server && wait $server || true # training needs the card's memory
baize train
baize evaluate | tee "runs/$BAIZE_RUN/evaluation.txt"
