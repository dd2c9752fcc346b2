"""FLOPs of each part of a model, for one token of the text: forward and backward pass.

    python benchmarks/flops.py                                              # GPT-2 small sizes, segments of 512 + 16
    python benchmarks/flops.py --size llama-1b --segment_size 1008 --model_type rmt
    python benchmarks/flops.py --model_cfg configs/models/llama-2x128.json --memory_layers 1

Of a segment inside a long text, which reads the memory and writes it. "needed": scores of attention that are seen;
"as computed": the whole square of scores, as a kernel with a mask does, and torch's FlopCounterMode counts. Norms,
activations and softmax are no FLOPs. tests/test_flops.py compares all of it with what torch counts in real passes.
"""

from dataclasses import dataclass

from machine import Ceiling, MachineArgs, finish
from sizes import KINDS, model_config
from transformers import AutoConfig

from lm_experiments_tools import cli
from lm_experiments_tools.args import option
from lm_experiments_tools.cli import mendable
from modeling_armt.flops import FlopCount, Flops, without_weights

MEGA = 1e6


@dataclass
class FlopsArgs(MachineArgs):
    """What to count."""

    size: str = option("gpt2-small", "toy, gpt2-small or llama-1b")
    model_cfg: str | None = option(None, "another backbone: configuration file, see configs/models")
    model_type: str = option("armt", "armt; rmt; none: segments without any memory")
    segment_size: int = option(512, "text tokens of a segment")
    num_mem_tokens: int = option(16, "memory tokens of a segment")
    d_mem: int = option(64, "ARMT: width of keys and queries before the feature map")
    memory_layers: list[int] | None = option(None, "ARMT: layers that carry a memory, from 0; default: all")


def count(args: FlopsArgs) -> tuple[FlopCount, Flops, Flops]:
    """Of a segment with the head everywhere: the counter, what is needed, what is computed."""
    options = {"d_mem": args.d_mem, "memory_layers": args.memory_layers} if args.model_type == "armt" else {}
    config = model_config(args.size, args.segment_size, args.num_mem_tokens, kind=args.model_type, **options)
    with mendable(OSError, ValueError):
        if args.model_cfg:
            config.backbone_config = AutoConfig.from_pretrained(args.model_cfg)
        counter = FlopCount(without_weights(KINDS[args.model_type][0], config))
    writes = config.num_mem_tokens > 0
    needed, computed = (counter.segment(args.segment_size, True, writes, causal) for causal in (True, False))
    head = counter.head(args.segment_size)
    return counter, needed + head, computed + head


def main(argv: list[str] | None = None) -> None:
    (args,) = cli.parse(argv, FlopsArgs, description=__doc__)
    counter, needed, computed = count(args)
    ceiling = Ceiling(args)
    per_token = {
        "forward": needed.parts(),
        "forward, as computed": computed.parts(),
        "backward": counter.backward(needed).parts(),
    }
    table = {
        name: {part: value / args.segment_size for part, value in found.items()} for name, found in per_token.items()
    }
    print(f"MFLOP for one of {args.segment_size} text tokens of a segment")
    print(f"{'part':<12}" + "".join(f"{name:>24}" for name in table))
    rows = [*needed.parts(), "without head", "with head"]
    for row in rows:
        print(f"{row:<12}" + "".join(f"{_value(found, row) / MEGA:>24.3f}" for found in table.values()))
    rates = {}
    for row in rows[-2:]:
        forward, backward = _value(table["forward"], row), _value(table["backward"], row)
        rates[row] = {"reading": ceiling.flops / forward, "training": ceiling.flops / (forward + backward)}
        shown = ", ".join(f"{kind} {rate:,.0f}" for kind, rate in rates[row].items())
        print(f"tokens/s at the ceiling, {row}: {shown}")
    finish(args, ceiling, flops_per_token=table, tokens_per_second_at_ceiling=rates)


def _value(parts: dict[str, float], row: str) -> float:
    if row in parts:
        return parts[row]
    return sum(parts.values()) - (parts["head"] if row == "without head" else 0)


if __name__ == "__main__":
    cli.run(main)
