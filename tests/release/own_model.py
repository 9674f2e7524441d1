"""A newcomer's own loop: python own_model.py FOLDER LEARNING_RATE."""

import sys

import torch
from torch import nn

import pullback as pb


def train(folder: str, learning_rate: float) -> None:
    torch.manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(300, 8) + 2 * nn.functional.one_hot(y, 8)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    with pb.Monitor(model, loss_fn, folder, optimizer=optimizer, every=20, max_samples=64) as monitor:
        for _ in range(80):
            batch = torch.randint(300, (50,))
            optimizer.zero_grad()
            loss = loss_fn(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            monitor.step(x[batch], y[batch], loss=loss)


if __name__ == "__main__":
    train(sys.argv[1], float(sys.argv[2]))
