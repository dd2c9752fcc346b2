#!/usr/bin/env bash
# WikiText-103 as in arXiv 2407.04841: prepares it once, trains GPT-2 with memory and the baselines on 8 segments of 128
# tokens, and shows losses by segment on 15.
#
#   bash scripts/pretraining/wikitext103.sh [RUNS] [--option value ...]
#
# WIKITEXT (default: Salesforce/wikitext of the hub) may be a local copy. Options and variables are those of compare.sh.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CORPORA="${CORPORA:-corpora}"
for split in train validation test; do
  python -m lm_experiments_tools.data.language_modeling prepare --input "${WIKITEXT:-Salesforce/wikitext}" \
    --config_name wikitext-103-raw-v1 --split "$split" --document_start '^ = [^=].* = $' \
    --tokenizer "${TOKENIZER:-gpt2}" --output "$CORPORA/wikitext103-$split"
done
exec bash scripts/pretraining/compare.sh configs/pretraining/wikitext103.yaml "$@"
