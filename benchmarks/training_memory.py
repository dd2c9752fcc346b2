"""Peak memory of a training step over many segments, with and without replay of segments.

    python benchmarks/training_memory.py                       # GPT-2-small sizes, 32 segments of 512 tokens, batch 1
    python benchmarks/training_memory.py --device cuda --keep_all 32

Counted above weights, gradients and optimizer state, which are there before the step; bfloat16 compute, float32 state,
no dropout of attention weights (with it, torch has no fused attention on a CPU). On a CPU the resident memory of the
process is sampled every 5 ms, on CUDA the allocator is asked.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from machine import freed_memory_returned
from transformers import GPT2Config

from lm_experiments_tools.peak_memory import PeakMemory
from modeling_armt import ArmtForCausalLM

GB = 1e9


def step(model, optimizer, segments: int, dense: bool) -> float:
    """One update; returns its seconds."""
    config, device = model.config, model.device
    ids = torch.randint(config.vocab_size, (1, segments * config.segment_size), device=device)
    labels = ids if dense else ids.clone()
    if not dense:
        labels[:, :-4] = -100
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16):
        loss = model(ids, labels=labels, output_memory_state=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # gradients stay allocated, so that they are not counted
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> tuple[ArmtForCausalLM, list[dict]]:
    """The model, and the rows of the table."""
    device = torch.device(args.device)
    sizes = dict(n_layer=args.layers, n_embd=args.width, n_head=args.width // 64, attn_pdrop=0.0)
    model = ArmtForCausalLM.from_backbone(GPT2Config(**sizes), segment_size=args.segment_size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.config.segment_checkpointing = True
    step(model, optimizer, 2, dense=False)  # allocates gradients and optimizer state
    rows = []
    cases = [(True, args.segments, False), (True, args.segments, True), (False, args.keep_all, False)]
    for replay, segments, dense in cases:
        model.config.segment_checkpointing = replay
        with PeakMemory(device) as memory:
            seconds = step(model, optimizer, segments, dense)
        tokens = segments * args.segment_size
        rows.append({"replay": replay, "segments": segments, "labels": "all" if dense else "answer",
                     "peak_gb": memory.bytes / GB, "tokens_per_second": tokens / seconds})  # fmt: skip
    return model, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--segments", type=int, default=32, help="segments with replay")
    parser.add_argument("--keep_all", type=int, default=4, help="segments of the step that keeps all activations")
    parser.add_argument("--segment_size", type=int, default=512, help="text tokens of a segment")
    parser.add_argument("--layers", type=int, default=12, help="layers of the backbone")
    parser.add_argument("--width", type=int, default=768, help="width of the backbone")
    parser.add_argument("--output", help="JSON file for the figures")
    args = parser.parse_args()
    with freed_memory_returned():
        model, rows = measure(args)
    held = sum(p.nbytes for p in model.parameters()) * 4 / GB
    state = sum(tensor.nbytes for tensor in model.empty_state(1).unbind()) / GB
    print(f"{model.num_parameters():,} parameters: {held:.2f} GB with gradients and AdamW; state {state * 1e3:.1f} MB")
    print(f"{'activations':>12}{'segments':>10}{'labels':>8}{'peak, GB':>10}{'tokens/s':>10}")
    for row in rows:
        kind = "replayed" if row["replay"] else "kept"
        print(
            f"{kind:>12}{row['segments']:>10}{row['labels']:>8}{row['peak_gb']:>10.2f}{row['tokens_per_second']:>10.0f}"
        )
    if args.output:
        report = {"device": args.device, "torch": torch.__version__, "sizes": vars(args), "rows": rows}
        Path(args.output).write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
