#!/usr/bin/env bash
# Pre-trains ARMT and the baselines beside it, one after the other, and shows their losses by segment, with the memory and
# without:
#
#   bash scripts/pretraining/compare.sh configs/pretraining/wikitext103.yaml ~/runs/wikitext103 [--option value ...]
#
# The configuration names its corpora in $CORPORA (default: corpora). MODELS chooses among armt, rmt, none (segments
# without a memory) and full (the decoder, which reads samples whole); default: armt none full. SEGMENTS (default: 15) of a
# window are read in the evaluation. NP processes (default: all GPUs); the configuration's gradient accumulation is shared
# out among them. Safe to run again: what is finished is not repeated, what was interrupted continues.
set -euo pipefail

config="${1:?usage: $0 CONFIG.yaml [RUNS] [--option value ...]}"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
runs="${RUNS_DIR:-runs}/$(basename "$config" .yaml)"
if [ $# -gt 0 ] && [[ "$1" != --* ]]; then
  runs="$1"
  shift
fi
export CORPORA="${CORPORA:-corpora}"

num_processes="${NP:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}"
launcher=(python)
if [ "$num_processes" -gt 1 ]; then
  launcher=(torchrun --standalone --nproc_per_node "$num_processes")
  steps="$(sed -n 's/^gradient_accumulation_steps: *\([0-9]*\).*/\1/p' "$config")"
  [ "$((${steps:-1} % num_processes))" -ne 0 ] || set -- --gradient_accumulation_steps "$((steps / num_processes))" "$@"
fi

trained="$(sed -n 's/^max_n_segments: *\([0-9]*\).*/\1/p' "$config")"
models=(${MODELS:-armt none full})
for model in "${models[@]}"; do
  case "$model" in
    full) own=(--model_type hf --test_n_segments "$trained") ;; # longer ones may exceed its positions
    *) own=(--model_type "$model") ;;
  esac
  "${launcher[@]}" run_pretraining.py --config "$config" --model_path "$runs/$model" "${own[@]}" "$@"
done

named=()
for model in "${models[@]}"; do named+=("$model=$runs/$model"); done
mapfile -t test < <(python -c 'import sys; from lm_experiments_tools.cli import read_yaml
options = read_yaml(sys.argv[1]); print(*options.get("test_corpora") or options["valid_corpora"], sep="\n")' "$config")
python -m lm_experiments_tools.evaluation.language_modeling --models "${named[@]}" --data "${test[@]}" \
  --segments "${SEGMENTS:-15}" --ablate zero other --output "$runs/losses"
