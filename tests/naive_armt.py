"""ARMT over GPT-2 written straight from the equations, in loops and float64: the reference that the tests carry.

It shares no code with `modeling_armt` or transformers. Weights are a dictionary with the names of
`ArmtForCausalLM.state_dict()`.
"""

import math

import torch


def dpfp(x, nu):
    x = torch.relu(torch.cat((x, -x)))
    return torch.cat([torch.stack([x[i] * x[i - j] for i in range(len(x))]) for j in range(1, nu + 1)])


def layer_norm(x, weight, bias):
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class NaiveArmt:
    def __init__(self, weights, heads, segment_size, nu, use_correction=True):
        self.w = {name: tensor.double().clone().requires_grad_() for name, tensor in weights.items()}
        self.heads, self.segment_size, self.nu, self.use_correction = heads, segment_size, nu, use_correction
        self.layers = len({name.split(".")[3] for name in weights if ".h." in name})

    def row(self, ids):
        """One sequence -> logits (N, V) and the states [(A, z) of each layer] after each segment."""
        memory = [None] * self.layers
        logits, states = [], []
        for start in range(0, len(ids), self.segment_size):
            tokens = ids[start : start + self.segment_size]
            x = [self.w["backbone.transformer.wte.weight"][t] for t in tokens] + list(self.w["memory_tokens"])
            x = [h + self.w["backbone.transformer.wpe.weight"][p] for p, h in enumerate(x)]
            for layer in range(self.layers):
                if memory[layer] is not None:
                    x = [h + self.read(layer, h, memory[layer]) for h in x]
                x = self.block(layer, x)
                memory[layer] = self.write(layer, x[len(tokens) :], memory[layer])
            final = [self.norm("backbone.transformer.ln_f", h) for h in x[: len(tokens)]]
            logits += [self.w["backbone.transformer.wte.weight"] @ h for h in final]
            states.append(list(memory))
        return torch.stack(logits), states

    def norm(self, name, h):
        return layer_norm(h, self.w[name + ".weight"], self.w[name + ".bias"])

    def affine(self, name, h):
        return h @ self.w[name + ".weight"] + self.w[name + ".bias"]

    def block(self, layer, x):
        name = f"backbone.transformer.h.{layer}"
        qkv = [self.affine(f"{name}.attn.c_attn", self.norm(f"{name}.ln_1", h)).chunk(3) for h in x]
        out = []
        for i, h in enumerate(x):
            mixed = []
            for q, ks, vs in zip(
                qkv[i][0].chunk(self.heads),
                zip(*[k.chunk(self.heads) for _, k, _ in qkv[: i + 1]]),
                zip(*[v.chunk(self.heads) for _, _, v in qkv[: i + 1]]),
            ):
                scores = torch.stack([q @ k / math.sqrt(len(q)) for k in ks]).softmax(0)
                mixed.append(sum(score * v for score, v in zip(scores, vs)))
            h = h + self.affine(f"{name}.attn.c_proj", torch.cat(mixed))
            h = h + self.affine(
                f"{name}.mlp.c_proj", gelu(self.affine(f"{name}.mlp.c_fc", self.norm(f"{name}.ln_2", h)))
            )
            out.append(h)
        return out

    def feature(self, layer, which, h):
        return dpfp(self.w[f"memory_layers.{layer}.W_{which}"] @ h, self.nu)

    def read(self, layer, h, memory):
        A, z = memory
        q = self.feature(layer, "q", h)
        return (q @ A) / (q @ z + 1e-5)

    def write(self, layer, outputs, memory):
        new_A, new_z = 0, 0
        for m in outputs:
            k = self.feature(layer, "k", m)
            v = self.w[f"memory_layers.{layer}.W_v"] @ m
            gate = self.w[f"memory_layers.{layer}.W_b"] @ m + self.w[f"memory_layers.{layer}.bias_b"]
            gamma = 1.0
            if memory is not None:
                A, z = memory
                v = v - (k @ A) / (k @ z + 1e-5)
                if self.use_correction:
                    gamma = (1 - (k @ z + 1e-5) / (k @ k + 1e-5)).clamp(0, 1).detach()
            new_A = new_A + torch.sigmoid(gate) * torch.outer(k, v)
            new_z = new_z + gamma * k
        if memory is None:
            return new_A, new_z
        return memory[0] + new_A, memory[1] + new_z

    def loss(self, ids, labels):
        """Mean cross-entropy of a batch over labels that are not -100, shifted inside."""
        terms = []
        for row_ids, row_labels in zip(ids.tolist(), labels.tolist()):
            logits, _ = self.row(row_ids)
            log_probabilities = logits.log_softmax(-1)
            terms += [-log_probabilities[t - 1, y] for t, y in enumerate(row_labels) if t and y != -100]
        return sum(terms) / len(terms)
