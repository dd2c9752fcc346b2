#!/usr/bin/env bash
# The same curriculum for ARMT and the baselines beside it, one after the other, then one report:
#
#   bash scripts/associative_retrieval/compare.sh configs/associative_retrieval/small_remember.yaml ~/runs/remember
#
# MODELS chooses some of them (default: all), NP processes (default: all GPUs). Safe to run again: what is finished is
# not repeated, what was interrupted continues. Options behind RUNS go to every stage of every model.
set -euo pipefail

config="${1:?usage: $0 CONFIG.yaml [RUNS] [--option value ...]}"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
runs="${RUNS_DIR:-runs}/$(basename "$config" .yaml)"
if [ $# -gt 0 ] && [[ "$1" != --* ]]; then
  runs="$1"
  shift
fi
layers="$(sed -n 's/^model_cfg:.*-\([0-9]*\)x128.json.*/\1/p' "$config")" # of the configuration's backbone
upper=()
[ "$layers" -gt 2 ] || upper=(--memory_layers 1) # of two layers, the lower one's memory stays unused and drifts

models=(${MODELS:-armt armt-no-correction rmt none mamba2 gated-deltanet})
for model in "${models[@]}"; do
  case "$model" in
    armt) own=("${upper[@]}") ;;
    armt-no-correction) own=("${upper[@]}" --no_correction) ;;
    rmt) own=(--model_type rmt --num_mem_tokens 4) ;;
    none) own=(--model_type none) ;;
    *) own=(--model_type hf --model_cfg "configs/models/$model-${layers}x128.json") ;;
  esac
  bash scripts/babilong/curriculum.sh "$config" "$runs/$model" "${own[@]}" "$@"
done
python -m lm_experiments_tools.evaluation.retrieval_report "${models[@]/#/$runs/}" --output "$runs/report"
