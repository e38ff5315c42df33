"""python benchmarks/peft_way.py DIR RANKS [--fused]: one base, then an adapter of PEFT's for each rank and digit."""

from __future__ import annotations

import json
import sys
import time
import warnings

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

warnings.filterwarnings("ignore")
fused = {"fused": True} if "--fused" in sys.argv else {}
data = load_file(f"{sys.argv[1]}/cache/data/mnist.safetensors")
torch.manual_seed(0)


def split(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = data[f"{part}_images"].view(-1, 784).float().div_(255).sub_(0.1307).div_(0.3081)
    return images, data[f"{part}_labels"].long()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2, self.linear3 = nn.Linear(784, 1000), nn.Linear(1000, 2000), nn.Linear(2000, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear3(self.linear2(self.linear1(x).relu()).relu())


def fit(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3, **fused)
    for batch in torch.randperm(len(y)).split(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()


def target_error(net: nn.Module, digit: int) -> float:
    with torch.no_grad():
        missed = torch.cat([net(part).argmax(1) for part in test_x.split(1000)]) != test_y
    return float(missed[test_y == digit].float().mean())


train_x, train_y = split("train")
test_x, test_y = split("test")
started = time.perf_counter()
base = Net()
fit(base, train_x, train_y)
base_seconds = time.perf_counter() - started
errors = []
for rank in map(int, sys.argv[2].split(",")):
    for digit in range(10):
        config = LoraConfig(r=rank, lora_alpha=1, target_modules=["linear1", "linear2", "linear3"])
        adapted = get_peft_model(base, config)
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                nn.init.normal_(parameter)  # as the other two ways draw it
        chosen = (train_y == digit).nonzero().flatten()
        fit(adapted, train_x[chosen], train_y[chosen])
        errors.append((rank, digit, target_error(adapted, digit)))
        base = adapted.unload()
print(json.dumps({"base_seconds": base_seconds, "errors": errors}))
