"""The loss over many targets: never the logits of all, and the same value and gradients."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import SEGMENT, VOCAB, close, make, tokens
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_armt import loss as loss_module


class LargestTensor(TorchDispatchMode):
    """The largest last dimension VOCAB that any operation gave, in rows."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == VOCAB:
                self.rows = max(self.rows, tensor.numel() // VOCAB)
        return output


def full_loss(model, ids):
    logits = model(ids).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])


@pytest.fixture(params=["fused by torch", "chunked"])
def way(request, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 16)
    if request.param == "chunked":
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    elif not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    return request.param


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt-projected"])
def test_loss_and_gradients_equal_those_of_full_logits(way, family):
    ids = tokens(3, 4 * SEGMENT)
    lean, full = make(family).train(), make(family).train()
    output = lean(ids, labels=ids)
    assert output.logits is None and output.target_logits is None
    expected = full_loss(full, ids)
    close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    for (name, parameter), other in zip(lean.named_parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_logits_of_all_targets_never_exist_at_once(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 16)
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)  # torch's own is no Python operation to look into
    model, ids = make().train(), tokens(3, 4 * SEGMENT)
    with LargestTensor() as largest:
        model(ids, labels=ids).loss.backward()
    assert 0 < largest.rows <= 31  # 16 targets; VOCAB rows of the gradient of the head
    with LargestTensor() as largest:
        model(ids, labels=ids, output_logits=True).loss.backward()
    assert largest.rows >= ids.numel() - 3


def test_under_autocast_the_loss_is_summed_in_float32(way):
    model, ids = make(), tokens(40, 4 * SEGMENT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, labels=ids)
        logits = model(ids).logits[:, :-1]
    assert output.loss.dtype == torch.float32
    close(output.loss, F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:]), 1e-4)
