"""The Lightning callback: the steps of `SelfTuner` itself, exact resume, and mistakes that are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: pip install 'tune_stn[lightning]'")

from torchmetrics.classification import MulticlassAccuracy  # noqa: E402

from tune_stn import SearchSpace, SelfTuner, Uniform, self_tuning  # noqa: E402
from tune_stn.integrations.lightning import SelfTuningCallback  # noqa: E402
from tune_stn.integrations.shared import ValidationBatches  # noqa: E402
from tune_stn.nn import SelfTuningModel  # noqa: E402

pytestmark = [
    # Lightning's advice about workers of loaders and the length of an epoch.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Lightning's own use of torch.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]

SPACE = SearchSpace({"dropout": Uniform(0, 0.9)})
RULES = ("auto", "progress-ratio", "stn", "delta-stn", "fixed")
EPOCHS = 4


def data(seed: int, count: int = 60) -> TensorDataset:
    """Inputs, and which of their first three numbers is the largest."""
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def net_of(algorithm: str) -> SelfTuningModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    start = {"dropout": 0.3}
    return self_tuning(model, SPACE, start=start, dropout={"3": "dropout"}, centred=algorithm == "delta-stn")


class Module(pl.LightningModule):  # type: ignore[misc,name-defined]
    """A user's own, but for the network that it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer_of(*callbacks: Any, epochs: int = EPOCHS, **more: Any) -> Any:
    settings = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0, "accelerator": "cpu", **more}
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def train_loader() -> DataLoader[Any]:
    return DataLoader(data(0), 10, shuffle=True)


def valid_loader() -> DataLoader[Any]:
    return DataLoader(data(1), 30)


def fit(algorithm: str, **more: Any) -> tuple[Module, SelfTuningCallback]:
    """A run of Lightning from seed 1."""
    module, callback = Module(net_of(algorithm)), SelfTuningCallback(algorithm, hyper_lr=0.05)
    torch.manual_seed(1)
    trainer_of(callback, **more).fit(module, train_loader(), valid_loader())
    return module, callback


def reference(algorithm: str, **settings: Any) -> SelfTuningModel:
    """The same run in a loop of one's own."""
    net = net_of(algorithm)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.7)
    loader, valid_in_order = train_loader(), valid_loader()
    tuner = SelfTuner(net, optimizer, algorithm=algorithm, hyper_lr=0.05, steps=EPOCHS * len(loader), **settings)
    valid = ValidationBatches(DataLoader(data(1), 30, shuffle=True))
    torch.manual_seed(1)

    def closure(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    for _ in range(EPOCHS):
        net.train()
        for x, y in loader:
            tuner.train_step(lambda x=x, y=y: closure(x, y))
            schedule.step()
            if tuner.hyper_step_due:
                xv, yv = valid.draw()
                tuner.hyper_step(lambda xv=xv, yv=yv: closure(xv, yv))
        iter(valid_in_order)  # the validation after an epoch, whose loader draws a seed
    return net


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    there = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, there[name])]


@pytest.mark.parametrize("algorithm", RULES)
def test_the_same_steps_as_in_a_loop_of_ones_own_bit_for_bit(algorithm: str) -> None:
    """With batch norm, dropout, a schedule of the learning rate in steps, and clipping.

    Not of `stn`: Lightning sums the squares of its gradients in another order.
    """
    clip_norm = None if algorithm == "stn" else 0.5
    module, callback = fit(algorithm, gradient_clip_val=clip_norm)
    net = reference(algorithm, clip_norm=clip_norm)
    assert differing(module.net, net) == []
    assert callback.tuner is not None
    assert callback.tuner.steps_done == EPOCHS * 6
    assert (net.hyperparameters() == net_of(algorithm).hyperparameters()) == (algorithm == "fixed")


@pytest.mark.parametrize("algorithm", ["auto", "stn", "delta-stn"])
def test_a_run_goes_on_from_a_checkpoint_as_it_would_have(algorithm: str, tmp_path: Path) -> None:
    whole, _ = fit(algorithm)
    first, callback = Module(net_of(algorithm)), SelfTuningCallback(algorithm, hyper_lr=0.05, steps=EPOCHS * 6)
    torch.manual_seed(1)
    trainer = trainer_of(callback, epochs=2, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(first, train_loader(), valid_loader())
    checkpoint = trainer.checkpoint_callback.best_model_path
    assert torch.load(checkpoint, weights_only=True)["callbacks"]
    second, callback = Module(net_of(algorithm)), SelfTuningCallback(algorithm, hyper_lr=0.05)
    torch.manual_seed(5)
    trainer = trainer_of(callback, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(second, train_loader(), valid_loader(), ckpt_path=checkpoint)
    assert differing(second.net, whole.net) == []
    assert callback.tuner is not None
    assert callback.tuner.steps_done == EPOCHS * 6
    reloaded = Module.load_from_checkpoint(checkpoint, net=net_of(algorithm), weights_only=True)
    assert reloaded.net.hyperparameters() == first.net.hyperparameters() != net_of(algorithm).hyperparameters()


class Whole(Module):
    """Calls itself, as most modules do."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


@pytest.mark.parametrize("algorithm", ["auto", "stn", "delta-stn"])
def test_a_module_is_made_self_tuning_as_a_whole(algorithm: str, tmp_path: Path) -> None:
    def fit_whole(**how: Any) -> tuple[SelfTuningModel, Any]:
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
        net = self_tuning(
            Whole(plain), SPACE, start={"dropout": 0.3}, dropout={"net.3": "dropout"}, centred=algorithm == "delta-stn"
        )
        callback = SelfTuningCallback(algorithm, hyper_lr=0.05, steps=EPOCHS * 6)
        epochs = how.pop("epochs", EPOCHS)
        trainer = trainer_of(callback, epochs=epochs, default_root_dir=tmp_path, enable_checkpointing=True)
        torch.manual_seed(1)
        trainer.fit(net.in_own_class(), train_loader(), valid_loader(), **how)
        return net, trainer

    whole, _ = fit_whole()
    other, _ = fit(algorithm)
    assert whole.hyperparameters() == other.net.hyperparameters()
    _, trainer = fit_whole(epochs=2)
    resumed, _ = fit_whole(ckpt_path=trainer.checkpoint_callback.best_model_path)
    assert differing(resumed, whole) == []
    plain = whole.to_plain()
    assert type(plain) is Whole
    assert plain.net[3].p == pytest.approx(whole.hyperparameters()["dropout"])
    x = data(3).tensors[0]
    torch.testing.assert_close(plain.eval()(x), other.net.eval()(x))


class Noisy(Module):
    """With an augmentation, a metric and a list, all in `training_step`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.accuracy = MulticlassAccuracy(3)
        self.modes: list[tuple[bool, bool, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        x, y = batch
        self.modes.append((self.training, self.net.training, len(x)))
        logits = self.net(x)
        self.accuracy(logits, y)
        self.log("train_loss", F.cross_entropy(logits, y))
        return {"loss": F.cross_entropy(logits, y)}


@pytest.mark.parametrize("algorithm", RULES)
def test_gradients_are_accumulated_and_nothing_counts_twice(algorithm: str) -> None:
    module, callback = Noisy(net_of(algorithm)), SelfTuningCallback(algorithm, hyper_lr=0.05, train_steps=2)
    trainer = trainer_of(callback, accumulate_grad_batches=2)
    trainer.fit(module, train_loader(), valid_loader())
    assert callback.tuner is not None
    assert callback.tuner.steps_done == EPOCHS * 3
    assert module.accuracy._update_count == EPOCHS * 6  # no step beside training has counted
    assert {net for _, net, _ in module.modes} == {True} if algorithm == "fixed" else {True, False}
    assert all(mode == net for mode, net, _ in module.modes)
    assert {rows for _, net, rows in module.modes if not net} <= {30, 10}
    if algorithm == "fixed":
        assert "hp/dropout" not in trainer.callback_metrics
    else:
        assert trainer.callback_metrics["hp/dropout"] == pytest.approx(module.net.hyperparameters()["dropout"])


class Short(Module):
    """Leaves an epoch after three batches, by Lightning's own means."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert not self.net.slot.is_set  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("algorithm", ["auto", "stn"])
def test_an_epoch_that_is_cut_short(algorithm: str) -> None:
    callback = SelfTuningCallback(algorithm, hyper_lr=0.05)
    module = Short(net_of(algorithm))
    trainer_of(callback).fit(module, train_loader(), valid_loader())
    assert callback.tuner is not None
    assert callback.tuner.steps_done == EPOCHS * 3
    assert not module.net.slot.is_set


class Manual(Module):
    """Steps its optimizers itself, one of them that of another network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False
        self.other = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        x, y = batch
        mine, others = self.optimizers()
        for optimizer, loss in ((mine, F.cross_entropy(self.net(x), y)), (others, self.other(x).square().mean())):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net.parameters(), lr=0.02), torch.optim.SGD(self.other.parameters(), lr=0.02)


@pytest.mark.parametrize("algorithm", ["auto", "stn", "delta-stn"])
def test_manual_optimization_takes_a_loss(algorithm: str) -> None:
    callback = SelfTuningCallback(
        algorithm, hyper_lr=0.05, loss=lambda module, batch: F.cross_entropy(module.net(batch[0]), batch[1])
    )
    module = Manual(net_of(algorithm))
    trainer_of(callback).fit(module, train_loader(), valid_loader())
    assert callback.tuner is not None
    assert callback.tuner.steps_done == EPOCHS * 6
    assert module.net.hyperparameters() != net_of(algorithm).hyperparameters()
    with pytest.raises(ValueError, match=r"steps the optimizers itself .*SelfTuningCallback\(loss="):
        trainer_of(SelfTuningCallback()).fit(Manual(net_of("auto")), train_loader(), valid_loader())


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_a_network_that_nothing_tunes_is_told() -> None:
    with pytest.warns(UserWarning, match=r"called 50 times .* nothing tunes its .*integrations\.lightning"):
        trainer_of(epochs=9).fit(Module(net_of("auto")), train_loader(), valid_loader())


class Apart(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)


def test_mistakes_in_the_setting_up() -> None:
    net = net_of("auto")
    plain = Module(nn.Linear(4, 3))
    several = Module(nn.ModuleList([net, net_of("auto")]))
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("Module is not self-tuning and has no self-tuning network, so there is nothing to tune: make its", plain, {}),
        (r"has 2 self-tuning networks, net\.0, net\.1", several, {}),
        ("0 optimizers of configure_optimizers hold weights", Apart(net), {}),
        ("'auto' would tune nothing: the run of 4 optimizer steps is over", Module(net), {"max_steps": 4}),
        ("the Trainer's run has no end", Module(net), {"epochs": -1, "max_time": "00:00:00:01"}),
        ("'delta-stn' needs a network of self_tuning", Module(net), {"algorithm": "delta-stn"}),
        ("does not reach the response step", Module(net_of("delta-stn")), {
            "algorithm": "delta-stn", "gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"
        }),
    ]  # fmt: skip
    for message, module, settings in cases:
        callback = SelfTuningCallback(settings.pop("algorithm", "auto"))
        with pytest.raises(ValueError, match=message):
            trainer_of(callback, **settings).fit(module, train_loader(), valid_loader())
    with pytest.raises(ValueError, match=r"there is no validation data.*give Trainer\.fit a val_dataloader"):
        trainer_of(SelfTuningCallback()).fit(Module(net), train_loader())
    with pytest.raises(ValueError, match="there are 2 validation loaders: say which"):
        trainer_of(SelfTuningCallback()).fit(Module(net), train_loader(), [valid_loader(), valid_loader()])
    with pytest.raises(TypeError, match=r"accumulate=2 is the Trainer's own affair: Trainer\(accumulate_grad_batches="):
        SelfTuningCallback(accumulate=2)
    with pytest.raises(ValueError, match="unknown algorithm 'sgd'"):
        SelfTuningCallback("sgd")


def test_validation_data_of_ones_own() -> None:
    module = Module(net_of("auto"))
    trainer_of(SelfTuningCallback(valid=valid_loader(), hyper_lr=0.05)).fit(module, train_loader())
    assert module.net.hyperparameters() != net_of("auto").hyperparameters()
