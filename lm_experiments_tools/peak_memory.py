"""Most memory that something takes, on CUDA or in the resident memory of the process."""

import resource
import threading
import time
from pathlib import Path

import torch

PAGE = 4096  # bytes, of /proc/self/statm
SAMPLED_EVERY = 0.005  # seconds, on a CPU


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of the tensors on a CUDA device, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class PeakMemory:
    """Most bytes held inside the `with`, above those held at its start: attribute `bytes` behind it."""

    def __init__(self, device: torch.device):
        self.device = device

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = self._now()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.running = True
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.running = False
            self.thread.join()
        self.bytes = self.peak - self.start

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self._now())
            time.sleep(SAMPLED_EVERY)
