#!/usr/bin/env bash
# Shows on a folder of plain text, a file a document, what a memory is worth to a small language model: two CPU cores, ten
# minutes a model.
#
#   TEST=~/data/books/frankenstein.txt bash scripts/pretraining/small.sh ~/data/books [RUNS] [--option value ...]
#
# TEST is left out of the training (default: the last file). Options and variables are those of compare.sh.
set -euo pipefail

text="$(realpath "${1:?usage: $0 FOLDER [RUNS] [--option value ...]}")"
shift
files=("$text"/*.txt)
test="$(realpath "${TEST:-${files[-1]}}")"
train=()
for file in "${files[@]}"; do [ "$file" = "$test" ] || train+=("$file"); done
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CORPORA="${CORPORA:-corpora}"

prepare=(python -m lm_experiments_tools.data.language_modeling prepare)
"${prepare[@]}" --input "${train[@]}" --vocab_size "${VOCAB_SIZE:-259}" --output "$CORPORA/small-train"
"${prepare[@]}" --input "$test" --tokenizer "$CORPORA/small-train/tokenizer" --output "$CORPORA/small-test"
exec bash scripts/pretraining/compare.sh "${CONFIG:-configs/pretraining/small.yaml}" "$@"
