#!/usr/bin/env bash
# PG-19, whole books: prepares it once, trains GPT-2 with memory and the baselines on 8 segments of 512 tokens, and shows
# losses by segment on 15. A model without segments has no positions for as many: MODELS leaves it out.
#
#   bash scripts/pretraining/pg19.sh [RUNS] [--option value ...]
#
# PG19 (default: emozilla/pg19 of the hub, 11 GB of text) may be a local copy. Options and variables are those of
# compare.sh.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CORPORA="${CORPORA:-corpora}" MODELS="${MODELS:-armt none}"
for split in train validation test; do
  python -m lm_experiments_tools.data.language_modeling prepare --input "${PG19:-emozilla/pg19}" --streaming \
    --split "$split" --tokenizer "${TOKENIZER:-gpt2}" --output "$CORPORA/pg19-$split"
done
exec bash scripts/pretraining/compare.sh configs/pretraining/pg19.yaml "$@"
