#!/usr/bin/env bash
# Trains a small ARMT on simulated bAbI qa1 in embedded text, then tests it on lengths that it never saw.
# Two CPU cores, no download but the packages. Killed at any point, it continues when it is run again; run again when
# done, it prints the table. RUNS_DIR (default: runs) is where the run goes; arguments override options of every stage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
run="${RUNS_DIR:-runs}/quickstart"
python -m lm_experiments_tools.curriculum "${QUICKSTART_CONFIG:-configs/babilong/quickstart.yaml}" --runs "$run" "$@"
cat <<EOF

table and picture: $run/metrics.json, $run/accuracy.png
curves: $venv/bin/tensorboard --logdir $run
EOF
