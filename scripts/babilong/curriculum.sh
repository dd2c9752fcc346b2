#!/usr/bin/env bash
# Runs a curriculum on all GPUs of this machine, or NP of them; without a GPU, on the CPU.
#
#   DATA_DIR=~/data bash scripts/babilong/curriculum.sh configs/babilong/paper_gpt2.yaml ~/runs/qa2 --task_dataset qa2
#
# Paths are relative to the repository; RUNS is by default RUNS_DIR (or else runs) and the configuration's name. Safe to
# run again: a finished stage is not repeated, an interrupted one continues. Options behind RUNS go to every stage.
set -euo pipefail

config="${1:?usage: $0 CONFIG.yaml [RUNS] [--option value ...]}"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
runs="${RUNS_DIR:-runs}/$(basename "$config" .yaml)"
if [ $# -gt 0 ] && [[ "$1" != --* ]]; then
  runs="$1"
  shift
fi

num_processes="${NP:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}"
launcher=(python)
[ "$num_processes" -le 1 ] || launcher=(torchrun --standalone --nproc_per_node "$num_processes")
exec "${launcher[@]}" -m lm_experiments_tools.curriculum "$config" --runs "$runs" "$@"
