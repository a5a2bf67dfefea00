"""Attacks on any differentiable model: small changes of its inputs that raise an objective, for many images at once.

An objective is a function of images and labels that says of each image how far the attack is; `misclassified` makes one of
any model. Images are in [0, 1] and stay there, so that budgets mean the same for all models: normalisation belongs inside
the model. Parameters get no gradient, and a module's mode is what it was.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
>>> images = torch.rand(8, 1, 4, 4)
>>> labels = model(images).argmax(1)
>>> attacked = pgd(misclassified(model), images, labels, radius=0.5)
>>> bool(attacked.reached.all()), bool((attacked.images - images).abs().max() <= 0.5 + 1e-6)
(True, True)
>>> nearer = carlini_wagner(misclassified(model), images, labels, steps=200, searches=5)
>>> bool((nearer.images - images).norm() < (attacked.images - images).norm())
True
"""

from polytask.measure.attacks.gradient import Attacked, Norm, fgsm, pgd
from polytask.measure.attacks.misclassified import misclassified
from polytask.measure.attacks.nearest import carlini_wagner, nearest
from polytask.measure.attacks.transfer import noise, transfer_rates
from polytask.nn.objective import Aim, Objective, label_loss

__all__ = [
    "Aim",
    "Attacked",
    "Norm",
    "Objective",
    "carlini_wagner",
    "fgsm",
    "label_loss",
    "misclassified",
    "nearest",
    "noise",
    "pgd",
    "transfer_rates",
]
