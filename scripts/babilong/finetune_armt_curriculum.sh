#!/usr/bin/env bash
# The paper's curriculum for one bAbI task: GPT-2, segments of 512 tokens, 2 3 5 8 16 32 segments (arXiv 2407.04841;
# sizes and steps as published, but validation is held out from the training stories).
#
#   DATA_DIR=~/data RUNS_DIR=~/runs bash scripts/babilong/finetune_armt_curriculum.sh qa1
#
# DATA_DIR holds en-10k/ (bAbI files) and books/ (plain text, for background; NOISE names another folder or dataset).
# NP GPUs of this machine are used (default: all that are there). Safe to run again: a finished stage is not repeated,
# an interrupted one continues. Arguments behind the task go to every stage.
set -euo pipefail

task="${1:?usage: DATA_DIR=... RUNS_DIR=... $0 TASK [--option value ...]}"
shift
: "${DATA_DIR:?set DATA_DIR, the folder with en-10k/ and books/}"
: "${RUNS_DIR:?set RUNS_DIR, the folder for runs}"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

num_processes="${NP:-$(nvidia-smi -L 2>/dev/null | wc -l || true)}"
[ "$num_processes" -ge 1 ] || num_processes=1
launcher=(python)
[ "$num_processes" -eq 1 ] || launcher=(torchrun --standalone --nproc_per_node "$num_processes")

segments=(2 3 5 8 16 32)
iters=(10000 10000 10000 10000 10000 30000)
batch_sizes=(16 8 4 4 2 1) # samples of a micro-batch that fit a GPU of 80 GB
total_batch=64
run="$RUNS_DIR/babilong/$task/armt-gpt2"
previous=()

for stage in "${!segments[@]}"; do
  n="${segments[$stage]}"
  batch="${BATCH_SIZE:-${batch_sizes[$stage]}}"
  per_step=$((batch * num_processes))
  if ((total_batch % per_step)); then
    echo "error: batch $batch on $num_processes processes does not divide $total_batch; set BATCH_SIZE or NP" >&2
    exit 2
  fi
  folder="$run/stage-$((stage + 1))-segments-$n"
  "${launcher[@]}" run_finetuning_babilong.py --config configs/babilong/paper_gpt2.yaml \
    --task_dataset "$task" --babi_path "$DATA_DIR/en-10k" --noise_dataset "${NOISE:-$DATA_DIR/books}" \
    --max_n_segments "$n" --test_n_segments "$n" --iters "${iters[$stage]}" \
    --num_warmup_steps $((${iters[$stage]} / 10)) --num_training_steps $((${iters[$stage]} * 2)) \
    --batch_size "$batch" --gradient_accumulation_steps $((total_batch / per_step)) \
    "${previous[@]}" --model_path "$folder" "$@"
  previous=(--model_cpt "$folder")
done
