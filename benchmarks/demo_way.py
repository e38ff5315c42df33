"""python benchmarks/demo_way.py DIR RANK DIGIT: one configuration as the usual LoRA demonstrations do it."""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import nn
from torch.nn.utils import parametrize
from torchvision import datasets, transforms

folder, rank, digit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
train_set = datasets.MNIST(f"{folder}/cache/data", train=True, transform=transform)
test_set = datasets.MNIST(f"{folder}/cache/data", train=False, transform=transform)
train_loader = torch.utils.data.DataLoader(train_set, batch_size=10, shuffle=True)
test_loader = torch.utils.data.DataLoader(test_set, batch_size=10)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2, self.linear3 = nn.Linear(784, 1000), nn.Linear(1000, 2000), nn.Linear(2000, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear3(self.linear2(self.linear1(x.view(-1, 784)).relu()).relu())


class LoRA(nn.Module):
    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.B @ self.A) / rank


def fit(parameters: list[nn.Parameter], loader: torch.utils.data.DataLoader) -> None:
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    net.train()
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def target_error() -> float:
    net.eval()
    wrong = shown = 0
    with torch.no_grad():
        for x, y in test_loader:
            missed = net(x).argmax(1) != y
            wrong += int((missed & (y == digit)).sum())
            shown += int((y == digit).sum())
    return wrong / shown


net = Net()
started = time.perf_counter()
fit(list(net.parameters()), train_loader)
trained = time.perf_counter()
before = target_error()
for parameter in net.parameters():
    parameter.requires_grad_(False)
for layer in (net.linear1, net.linear2, net.linear3):
    parametrize.register_parametrization(layer, "weight", LoRA(*layer.weight.shape))
chosen = torch.utils.data.Subset(train_set, (train_set.targets == digit).nonzero().flatten().tolist())
tuning = time.perf_counter()
fit(
    [p for p in net.parameters() if p.requires_grad],
    torch.utils.data.DataLoader(chosen, batch_size=10, shuffle=True),
)
tuned = time.perf_counter()
after = target_error()
stages = {"base": trained - started, "fine_tuning": tuned - tuning, "evaluation": time.perf_counter() - tuned}
print(json.dumps({"target_error_before": before, "target_error": after, **stages}))
