"""The experts and the selector of the experiments on MNIST."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling, on images ``(N, 1, 32, 32)``.

    Args:
        outputs: how many it has.
        sigmoid: whether the last layer's outputs pass a sigmoid before the loss, as in the authors' code. The cross-entropy
            of two classes then never falls below ``ln(1 + 1/e) = 0.313``. The claims are without it.
    """

    def __init__(self, outputs: int, sigmoid: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, outputs),
        )
        self.sigmoid = sigmoid

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layers(images)
        return found.sigmoid() if self.sigmoid else found
