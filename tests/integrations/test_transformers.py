"""The callback for Hugging Face's Trainer: the steps of `SelfTuner` itself, exact resume, mistakes that are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'tune_stn[transformers]'"
)
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'tune_stn[transformers]'")

from tune_stn import SearchSpace, SelfTuner, Uniform, self_tuning  # noqa: E402
from tune_stn.integrations.shared import ValidationBatches  # noqa: E402
from tune_stn.integrations.transformers import SelfTuningCallback  # noqa: E402
from tune_stn.nn import SelfTuningModel  # noqa: E402

SPACE = SearchSpace({"dropout": Uniform(0, 0.9)})
RULES = ("auto", "progress-ratio", "stn", "delta-stn", "fixed")
EPOCHS, BATCH, STEPS = 3, 8, 4


class Words(Dataset[dict[str, Tensor]]):
    """Eight tokens, and whether the first half of them is the larger."""

    def __init__(self, seed: int, count: int = BATCH * STEPS, labels: bool = True) -> None:
        self.tokens = torch.randint(3, 20, (count, 8), generator=torch.Generator().manual_seed(seed))
        self.labels = (self.tokens[:, :4].sum(1) > self.tokens[:, 4:].sum(1)).long() if labels else self.tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ones = torch.ones(8, dtype=torch.long)
        return {"input_ids": self.tokens[index], "attention_mask": ones, "labels": self.labels[index]}


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
    )


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    )


BERT = ("*output.dropout", "bert.embeddings.dropout", "dropout")
GPT2 = ("transformer.drop", "*resid_dropout", "*mlp.dropout")


def net_of(
    algorithm: str, model: nn.Module | None = None, paths: tuple[str, ...] = BERT, **more: Any
) -> SelfTuningModel:
    return self_tuning(
        bert() if model is None else model,
        SPACE,
        start={"dropout": 0.3},
        # All but that inside attention, which is fused.
        dropout=dict.fromkeys(paths, "dropout"),
        centred=algorithm == "delta-stn",
        inputs=(torch.ones(3, 8, dtype=torch.long),),
        **more,
    )


def trainer_of(net: nn.Module, folder: Path, *, valid: Any = "its own", **more: Any) -> Any:
    settings = {"save_strategy": "no", "logging_strategy": "epoch", "num_train_epochs": EPOCHS, **more}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=16,
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
        **settings,
    )
    valid = Words(1) if valid == "its own" else valid
    return transformers.Trainer(model=net, args=arguments, train_dataset=Words(0), eval_dataset=valid)


def train(algorithm: str, folder: Path, **more: Any) -> tuple[SelfTuningModel, Any]:
    trainer = trainer_of(net_of(algorithm), folder, **more)
    trainer.add_callback(SelfTuningCallback(trainer, algorithm, hyper_lr=0.05))
    trainer.train()
    return trainer.model, trainer


class Recording(SelfTuningCallback):
    """Keeps the batches of the Trainer's steps, and its random state at the first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Any] = []

    def _training_step(self, original: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((torch.get_rng_state(), dict(inputs)))
        return super()._training_step(original, model, inputs, *args, **kwargs)


@pytest.mark.parametrize("algorithm", RULES)
def test_the_same_steps_as_in_a_loop_of_ones_own_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    """With AdamW in two groups, a falling learning rate, and dropout; `stn` without clipping.

    For its gradients, the Trainer sums the squares in another order.
    """
    clip_norm = 0.0 if algorithm == "stn" else 0.5
    trainer = trainer_of(net_of(algorithm), tmp_path, max_grad_norm=clip_norm)
    callback = Recording(trainer, algorithm, hyper_lr=0.05)
    trainer.add_callback(callback)
    trainer.train()

    net = net_of(algorithm)
    like = trainer_of(net, tmp_path)
    like.create_optimizer_and_scheduler(EPOCHS * STEPS)
    tuner = SelfTuner(
        net, like.optimizer, algorithm=algorithm, hyper_lr=0.05, steps=EPOCHS * STEPS, clip_norm=clip_norm or None
    )
    valid = ValidationBatches(DataLoader(Words(1), 16, shuffle=True))
    net.train()
    assert len(callback.seen) == EPOCHS * STEPS
    for random, batch in callback.seen:
        torch.set_rng_state(random)
        tuner.train_step(lambda batch=batch: net(**batch).loss)
        like.lr_scheduler.step()
        if tuner.hyper_step_due:
            drawn = valid.draw()
            tuner.hyper_step(lambda drawn=drawn: net(**drawn).loss)
    assert differing(trainer.model, net) == []
    assert (net.hyperparameters() == net_of(algorithm).hyperparameters()) == (algorithm == "fixed")


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    there = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, there[name])]


@pytest.mark.parametrize("algorithm", ["auto", "stn", "delta-stn"])
def test_a_run_goes_on_from_a_checkpoint_as_it_would_have(algorithm: str, tmp_path: Path) -> None:
    """From the middle of an epoch, and between two hyper-steps."""
    whole, _ = train(algorithm, tmp_path / "whole")
    saving = {"save_strategy": "steps", "save_steps": 6}
    first, _ = train(algorithm, tmp_path / "first", **saving)
    assert differing(first, whole) == []
    checkpoint = tmp_path / "first" / "checkpoint-6"
    trainer = trainer_of(net_of(algorithm), tmp_path / "second")
    trainer.add_callback(SelfTuningCallback(trainer, algorithm, hyper_lr=0.05))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == EPOCHS * STEPS
    assert differing(trainer.model, whole) == []
    assert trainer.model.hyperparameters() != net_of(algorithm).hyperparameters()


def test_a_checkpoint_without_the_state_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(net_of("auto"), tmp_path, save_strategy="steps", save_steps=6)
    trainer.train()
    trainer = trainer_of(net_of("auto"), tmp_path)
    trainer.add_callback(SelfTuningCallback(trainer))
    with pytest.raises(ValueError, match="goes on from step 6, but the checkpoint has no state of the self-tuning"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


@pytest.mark.parametrize("algorithm", RULES)
def test_gradients_are_accumulated_and_evaluation_is_the_trainers_own(algorithm: str, tmp_path: Path) -> None:
    """A language model of tied weights, which have to be saved; in bfloat16."""
    net = net_of(algorithm, gpt2(), GPT2)
    more = {"gradient_accumulation_steps": 2, "bf16": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    trainer = trainer_of(net, tmp_path, valid=Words(1, labels=False), load_best_model_at_end=True, **more)
    trainer.train_dataset = Words(0, labels=False)
    callback = SelfTuningCallback(trainer, algorithm, hyper_lr=0.05, train_steps=2)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.tuner is not None
    assert callback.tuner.steps_done == EPOCHS * STEPS // 2
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == EPOCHS
    logged = [entry["hp/dropout"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == EPOCHS
    start = net_of(algorithm, gpt2(), GPT2).hyperparameters()["dropout"]
    assert (logged[-1] == pytest.approx(start)) == (algorithm == "fixed")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=0.02)  # the best one, in bfloat16
    plain = trainer.model.to_plain()
    assert type(plain) is transformers.GPT2LMHeadModel
    assert "training_step" not in vars(trainer)


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_a_network_that_nothing_tunes_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"called 50 times .* nothing tunes its .*integrations\.transformers"):
        trainer_of(net_of("auto"), tmp_path, num_train_epochs=13).train()


def test_mistakes_in_the_setting_up(tmp_path: Path) -> None:
    def callback(net: nn.Module | None = None, valid: Any = "its own", **more: Any) -> SelfTuningCallback:
        settings = {name: more.pop(name) for name in ("fp16",) if name in more}
        trainer = trainer_of(net_of("auto") if net is None else net, tmp_path, valid=valid, **settings)
        return SelfTuningCallback(trainer, **more)

    with pytest.raises(TypeError, match=r"trainer is a str: make the Trainer first, and then trainer\.add_callback"):
        SelfTuningCallback("auto")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"clip_norm=1 is the Trainer's own affair: TrainingArguments\(max_grad_norm="):
        callback(clip_norm=1)
    with pytest.raises(ValueError, match="BertForSequenceClassification is not self-tuning and has no self-tuning net"):
        callback(bert())
    with pytest.raises(ValueError, match="the Trainer has no eval_dataset, on which hyperparameters are tuned"):
        callback(valid=None)
    with pytest.raises(ValueError, match=r"several data sets, one, two: say which tunes, .*valid='one'"):
        callback(valid={"one": Words(1), "two": Words(2)})
    with pytest.raises(ValueError, match="unknown algorithm 'sgd'"):
        callback(algorithm="sgd")
    short = trainer_of(net_of("auto"), tmp_path, max_steps=4)
    short.add_callback(SelfTuningCallback(short))
    with pytest.raises(ValueError, match="'auto' would tune nothing: the run of 4 optimizer steps is over"):
        short.train()


def test_data_and_loss_of_ones_own(tmp_path: Path) -> None:
    seen = []

    def loss(model: Any, inputs: dict[str, Tensor]) -> Tensor:
        seen.append(len(inputs["labels"]))
        return model(**inputs).loss

    trainer = trainer_of(net_of("auto"), tmp_path, valid={"one": Words(1), "two": Words(2)})
    trainer.add_callback(SelfTuningCallback(trainer, valid="two", loss=loss, hyper_lr=0.05))
    trainer.train()
    assert set(seen) == {8, 16}
    assert trainer.model.hyperparameters() != net_of("auto").hyperparameters()


def test_attention_that_reads_a_rate_off_its_dropout(tmp_path: Path) -> None:
    paths = (*BERT, "*attention.self.dropout")
    trainer = trainer_of(net_of("auto", paths=paths), tmp_path)
    trainer.add_callback(SelfTuningCallback(trainer, hyper_lr=0.05))
    trainer.train()
    trainer = trainer_of(net_of("stn", paths=paths), tmp_path)
    trainer.add_callback(SelfTuningCallback(trainer, "stn"))
    with pytest.raises(ValueError, match=r"dropout\.p' as one number, but 'dropout' has a value for each of 8"):
        trainer.train()
