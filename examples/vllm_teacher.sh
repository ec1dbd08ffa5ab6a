#!/usr/bin/env bash
# A teacher of your own on a GPU: vLLM speaks OpenAI's API, so the course needs only its address.
# On the machine with the GPU (keep the server on a network you trust, or give it a key):
#
#   vllm serve Qwen/Qwen2.5-7B-Instruct --max-model-len 4096 --api-key "$OPENAI_API_KEY"
#
# and here, with the same key in OPENAI_API_KEY:
set -euo pipefail
export OPENAI_BASE_URL=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
export BAIZE_TEACHER=Qwen/Qwen2.5-7B-Instruct # the name that the server was started with
export BAIZE_TEACHER_PRICE=0/0                # USD per million tokens in and out: it is yours
export BAIZE_MAX_CALLS=256                    # vLLM likes many at once; the course slows when told
baize collect --num 200
