"""A task of your own: a small transformer, its code untouched.

The digits of scikit-learn, cut into sixteen 2x2 patches and read as a sequence. `PatchTransformer` is ordinary PyTorch:
it knows nothing of self-tuning. `task()` names what is to be tuned by the paths of its modules. Prints, epoch by epoch,
the losses and where the hyperparameters are, for the plain network and for both self-tuning ones.

    python experiments/own_transformer.py
    python experiments/own_transformer.py --smoke-test
    cd experiments && tune-stn compare --task own_transformer:task --methods stn,random --budget 120 --out runs
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tune_stn import LogUniform, SearchSpace, Task, Training, Uniform
from tune_stn.data import Splits, random_splits
from tune_stn.data.augment import LabelSmoothing
from tune_stn.nn.penalties import WeightDecay
from tune_stn.tasks import accuracy
from tune_stn.training import Trainer

# The user's model ------------------------------------------------------------------------------------------------


class PatchTransformer(nn.Module):
    """Sixteen patches of four pixels, two encoder layers, mean over the sequence; inputs `(batch, 16, 4)`."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.position = nn.Parameter(torch.randn(16, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, patches: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(self.embed(patches) + self.position)
        return self.head(self.norm(tokens.mean(1)))  # type: ignore[no-any-return]


# What is to be tuned ---------------------------------------------------------------------------------------------


def task() -> Task:
    """Attention, residual and feed-forward dropout, weight decay and label smoothing of a small transformer."""
    return Task(
        name="own-transformer",
        model=PatchTransformer,
        data=load,
        space=SearchSpace(
            {
                "attention": Uniform(0.0, 0.8),
                "residual": Uniform(0.0, 0.8),
                "feedforward": Uniform(0.0, 0.8),
                "smoothing": Uniform(0.0, 0.5),
                "weight_decay": LogUniform(1e-6, 1e-1),
            }
        ),
        start={"attention": 0.05, "residual": 0.05, "feedforward": 0.05, "smoothing": 0.02, "weight_decay": 1e-5},
        dropout={
            "encoder.layers.*.self_attn": "attention",
            "encoder.layers.*.dropout": "feedforward",
            "encoder.layers.*.dropout[12]": "residual",
        },
        label_augmentations=(LabelSmoothing("smoothing", classes=10),),
        penalties=(WeightDecay("weight_decay"),),
        metrics={"accuracy": accuracy},
        training=Training(
            epochs=40,
            batch_size=50,
            optimizer="Adam",
            lr=1e-3,
            clip_norm=1.0,
            hyper_lr=0.02,
            train_steps=3,
            warmup_epochs=3,
            scale=0.5,
            test_every=5,  # as often as it is printed
        ),
    )


def load(seed: int) -> Splits:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16 - 0.3
    patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(images), 16, 4)
    return Splits(*random_splits(patches, torch.tensor(digits.target), sizes=(500, 600, 697), seed=seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for algorithm in ("fixed", "stn", "delta-stn"):
        trainer = Trainer(task(), algorithm=algorithm, seed=arguments.seed)
        print(f"\n{algorithm}\n{trainer.model.conversion}")
        epochs = 1 if arguments.smoke_test else trainer.task.training.epochs
        for epoch in range(1, epochs + 1):
            report = trainer.run_epoch()
            if epoch % 5 == 0 or epoch == epochs:
                values = ", ".join(f"{key[3:]} {value:.3g}" for key, value in report.items() if key.startswith("hp/"))
                print(f"epoch {epoch}: validation {report['val_loss']:.4f}, test {report['test_loss']:.4f}; {values}")


if __name__ == "__main__":
    main()
