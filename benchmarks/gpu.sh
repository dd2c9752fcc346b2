#!/usr/bin/env bash
# All benchmarks of speed into one JSON, in under 8 minutes on one GPU.
#   bash benchmarks/gpu.sh gpu.json
#   DEVICE=cpu SMALL=1 bash benchmarks/gpu.sh small.json    # the same at its smallest, to see that everything runs
# A benchmark that fails, or takes longer than its limit, is named in the JSON, and the exit code is 1; the others count.
set -uo pipefail
output="$(realpath -m "${1:?usage: bash benchmarks/gpu.sh OUTPUT.json}")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
device="${DEVICE:-cuda}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
start=$SECONDS

measure() { # NAME SECONDS SCRIPT WORDS...: its JSON is NAME.json; what it prints is shown
    local name="$1" limit="$2" script="$3"
    shift 3
    echo "== $name, at $((SECONDS - start)) s"
    timeout "$limit" "$python" "benchmarks/$script.py" --device "$device" --output "$folder/$name.json" "$@"
    echo $? >"$folder/$name.code"
}

if [ -n "${SMALL:-}" ]; then
    segment=(--segment_size 16 --num_mem_tokens 4)
    measure flops 300 flops --size tiny "${segment[@]}"
    measure train_step 300 train_step --sizes tiny --segments 2 --pairs 1 --executors sequential --no_plain "${segment[@]}"
    measure long_context 300 long_context --sizes tiny --lengths 32 64 "${segment[@]}"
    measure stream 300 stream --size tiny --tokens 800 "${segment[@]}"
    measure generate 300 generate --sizes tiny --prompts 32 --new_tokens 4 "${segment[@]}"
else
    segment=(--segment_size 1008) # with 16 memory tokens a multiple of 128
    short=(--segment_size 496)
    picture="${output%.json}"
    # limits add up to 480 s
    measure flops 20 flops
    measure train_step_toy 40 train_step --sizes toy --segments 8 32 --pairs 2 "${short[@]}"
    measure train_step 60 train_step --sizes gpt2-small --segments 8 32 --pairs 2 "${short[@]}"
    measure train_step_batch_8 100 train_step --sizes gpt2-small --segments 32 --batch_size 8 --replay --no_plain --pairs 2 \
        --executors sequential sequential+compile diagonal "${short[@]}"
    measure long_context 45 long_context --sizes gpt2-small --picture "$picture-gpt2-small.png" "${segment[@]}"
    measure long_context_1b 70 long_context --sizes llama-1b --pairs 2 --picture "$picture-llama-1b.png" "${segment[@]}"
    measure stream 85 stream --size gpt2-small --executor diagonal --max_seconds 60 "${segment[@]}"
    measure generate 60 generate --sizes gpt2-small llama-1b "${segment[@]}"
fi

"$python" - "$folder" "$output" $((SECONDS - start)) <<'PY'
import json, pathlib, sys
folder, output, seconds = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
codes = {path.stem: int(path.read_text()) for path in sorted(folder.glob("*.code"))}
merged = {name: json.loads((folder / f"{name}.json").read_text()) for name, code in codes.items() if code == 0}
failed = {name: code for name, code in codes.items() if code}
report = {"seconds": seconds, "failed": failed} | merged
output.write_text(json.dumps(report, indent=1) + "\n")
print(f"{len(merged)} of {len(codes)} benchmarks in {seconds} s: {output}")
sys.exit(bool(failed))
PY
