#!/usr/bin/env bash
# Goes on pre-training a model of the Llama family on PG-19 with a memory: LoRA in the frozen backbone, the memory whole.
#
#   bash scripts/pretraining/llama_lora.sh [RUNS] [--option value ...]
#
# BACKBONE (default: meta-llama/Llama-3.2-1B) is a hub name or folder, and gives the tokenizer; PG19 as in pg19.sh,
# variables as in compare.sh.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CORPORA="${CORPORA:-corpora}" MODELS=armt BACKBONE="${BACKBONE:-meta-llama/Llama-3.2-1B}"
name="$(basename "$BACKBONE")"
for split in train validation test; do
  python -m lm_experiments_tools.data.language_modeling prepare --input "${PG19:-emozilla/pg19}" --streaming \
    --split "$split" --tokenizer "$BACKBONE" --output "$CORPORA/pg19-$name-$split"
done
export CORPUS="$CORPORA/pg19-$name" SEGMENTS="${SEGMENTS:-32}"
exec bash scripts/pretraining/compare.sh configs/pretraining/llama_lora.yaml "$@"
