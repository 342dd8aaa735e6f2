"""Which architectures of transformers convert, how they train, and what a step costs: one model of random weights each.

Each is made by a small configuration, converted with all its dropouts bound by `dropout={"*": "rate"}` and a weight
decay beside them, compared with the plain model at zero response, trained for two steps under each rule, and merged
back by `to_plain()`. A rate is drawn for each example where nothing reads it as a number, and for the batch elsewhere.

What a step of the rule `auto` costs is measured at that size, and at one four times as wide, at a batch with which a
plain step takes 50 ms or more. Whole cycles (five training steps, and for `auto` a hyper-step) take turns in one
process on one thread: of the plain model in a loop of torch's own, of the rule `fixed`, of `auto`. Times are processor
time, for others may use the machine; ratios are of neighbours in time. `fixed` is the plain network in this project's
loop, with the weight decay in the loss, where a hyperparameter must be; torch's loop has it in the optimizer.

Prints the tables and writes them to experiments/results/architectures/; experiments/architectures_page.py makes
docs/architectures.md of them. Needs transformers and peft, which tune_stn does not.

    python experiments/architectures.py              # some minutes
    python experiments/architectures.py --models BERT GPT-2
    python experiments/architectures.py --smoke-test
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import torch
import transformers
from provenance import provenance
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn import SearchSpace, Task, Training, Uniform, self_tuning
from tune_stn.data import Batch
from tune_stn.data.splits import Split, Splits
from tune_stn.nn import WeightDecay
from tune_stn.space import LogUniform
from tune_stn.training import Trainer

RULES = ("fixed", "auto", "progress-ratio", "stn", "delta-stn")
WORDS, TIME, BATCH = 50, 12, 8
# Name of a size -> how many times as wide the layers are, and the least seconds that a plain step takes.
SIZES = {"tiny": (1, 0.0), "larger": (4, 0.05)}
LARGEST_BATCH = 1024
STEPS = 5  # training steps of a cycle, the default
# What a conversion or a step may raise: it goes into the table.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, KeyError, IndexError)


class Called(nn.Module):
    """A model of transformers as a task calls it: one tensor in, its logits out."""

    def __init__(self, net: nn.Module, takes: str, **arguments: Any) -> None:
        super().__init__()
        self.net, self.takes, self.arguments = net, takes, arguments

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.net(**{self.takes: inputs}, **self.arguments).logits
        return outputs


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model, what it takes and what becomes of it.

    Attributes:
        make: Makes the model, with layers so many times as wide as they are at least.
        inputs: Number of examples -> what it takes.
        dropout: Whether it has any dropout; without one, a weight decay alone is tuned.
        next_word: Whether it predicts the next word of each, and not a class of each example.
    """

    make: Callable[[int], nn.Module]
    inputs: Callable[[int], Tensor]
    dropout: bool = True
    next_word: bool = False


def tokens(examples: int) -> Tensor:
    return torch.randint(3, WORDS, (examples, TIME))


def tokens_with_end(examples: int) -> Tensor:
    """As T5 wants them: each ends, once."""
    return torch.cat([tokens(examples), torch.ones(examples, 1, dtype=torch.long)], 1)


def images(examples: int) -> Tensor:
    return torch.randn(examples, 3, 32, 32)


def sounds(examples: int) -> Tensor:
    return torch.randn(examples, 800)


def spectra(examples: int) -> Tensor:
    return torch.randn(examples, 8, 40)


def encoder(wide: int) -> dict[str, int]:
    return {
        "vocab_size": WORDS,
        "hidden_size": 32 * wide,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64 * wide,
        "max_position_embeddings": 32,
        "num_labels": 2,
    }


def gpt(wide: int) -> dict[str, int]:
    return {"vocab_size": WORDS, "n_embd": 32 * wide, "n_layer": 2, "n_head": 2, "n_positions": 32, "num_labels": 2}


def bert(wide: int, **more: Any) -> nn.Module:
    config = transformers.BertConfig(**encoder(wide), **more)
    return Called(transformers.BertForSequenceClassification(config), "input_ids")


def distilbert(wide: int) -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=WORDS,
        dim=32 * wide,
        n_layers=2,
        n_heads=2,
        hidden_dim=64 * wide,
        max_position_embeddings=32,
        num_labels=2,
    )
    return Called(transformers.DistilBertForSequenceClassification(config), "input_ids")


def roberta(wide: int) -> nn.Module:
    config = transformers.RobertaConfig(**encoder(wide), pad_token_id=1)
    return Called(transformers.RobertaForSequenceClassification(config), "input_ids")


def gpt2(wide: int, **more: Any) -> nn.Module:
    config = transformers.GPT2Config(**gpt(wide), pad_token_id=0, **more)
    return Called(transformers.GPT2ForSequenceClassification(config), "input_ids", use_cache=False)


def checkpointed_gpt2(wide: int) -> nn.Module:
    model = gpt2(wide)
    model.net.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator, union-attr]
    return model


def tied_gpt2(wide: int) -> nn.Module:
    return Called(transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt(wide))), "input_ids", use_cache=False)


def llama(wide: int) -> nn.Module:
    config = transformers.LlamaConfig(**encoder(wide), num_key_value_heads=1, pad_token_id=0)
    return Called(transformers.LlamaForSequenceClassification(config), "input_ids", use_cache=False)


def t5(wide: int) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=WORDS,
        d_model=32 * wide,
        d_kv=16 * wide,
        d_ff=64 * wide,
        num_layers=1,
        num_heads=2,
        num_labels=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return Called(transformers.T5ForSequenceClassification(config), "input_ids", use_cache=False)


def vit(wide: int) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32 * wide,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64 * wide,
        image_size=32,
        patch_size=8,
        num_labels=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return Called(transformers.ViTForImageClassification(config), "pixel_values")


def convnext(wide: int) -> nn.Module:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8 * wide, 16 * wide], depths=[1, 2], num_stages=2, patch_size=4, num_labels=2, drop_path_rate=0.2
    )
    return Called(transformers.ConvNextForImageClassification(config), "pixel_values")


def wav2vec2(wide: int) -> nn.Module:
    config = transformers.Wav2Vec2Config(
        hidden_size=32 * wide,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64 * wide,
        conv_dim=(16 * wide, 16 * wide),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=16,
        num_labels=2,
        mask_time_prob=0.0,
        layerdrop=0.0,
    )
    return Called(transformers.Wav2Vec2ForSequenceClassification(config), "input_values")


def whisper(wide: int) -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=8,
        d_model=32 * wide,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64 * wide,
        max_source_positions=20,
        classifier_proj_size=16,
        num_labels=2,
        dropout=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return Called(transformers.WhisperForAudioClassification(config), "input_features")


def mamba(wide: int) -> nn.Module:
    config = transformers.MambaConfig(vocab_size=WORDS, hidden_size=16 * wide, num_hidden_layers=2, state_size=4)
    return Called(transformers.MambaForCausalLM(config), "input_ids", use_cache=False)


def lora(wide: int) -> nn.Module:
    plain = transformers.BertForSequenceClassification(transformers.BertConfig(**encoder(wide)))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], lora_dropout=0.1)
    return Called(peft.get_peft_model(plain, config), "input_ids")


ARCHITECTURES: dict[str, Architecture] = {
    "BERT": Architecture(make=bert, inputs=tokens),
    "BERT, eager attention": Architecture(make=lambda wide: bert(wide, attn_implementation="eager"), inputs=tokens),
    "DistilBERT": Architecture(make=distilbert, inputs=tokens),
    "RoBERTa": Architecture(make=roberta, inputs=tokens),
    "GPT-2": Architecture(make=gpt2, inputs=tokens),
    "GPT-2, checkpointed": Architecture(make=checkpointed_gpt2, inputs=tokens),
    "GPT-2, tied decoder": Architecture(make=tied_gpt2, inputs=tokens, next_word=True),
    "LLaMA": Architecture(make=llama, inputs=tokens),
    "T5": Architecture(make=t5, inputs=tokens_with_end),
    "ViT": Architecture(make=vit, inputs=images),
    "ConvNeXt": Architecture(make=convnext, inputs=images),
    "Wav2Vec2": Architecture(make=wav2vec2, inputs=sounds),
    "Whisper encoder": Architecture(make=whisper, inputs=spectra),
    "Mamba": Architecture(make=mamba, inputs=tokens, dropout=False, next_word=True),
    "BERT with LoRA": Architecture(make=lora, inputs=tokens),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke-test", action="store_true", help="two architectures, two rounds, no file")
    parser.add_argument("--models", nargs="+", choices=[*ARCHITECTURES], default=[*ARCHITECTURES])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "architectures")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about its own names
    torch.set_num_threads(1)
    rows, costs = [], []
    for name in ["GPT-2", "ConvNeXt"] if arguments.smoke_test else arguments.models:
        row, task = look_at(ARCHITECTURES[name])
        rows.append({"model": name, **row})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        if row["trains_fixed"] == row["trains_auto"] == "yes":
            for size in ["tiny"] if arguments.smoke_test else SIZES:
                rounds = 2 if arguments.smoke_test else arguments.rounds
                costs.append({"model": name, "size": size, **cost(ARCHITECTURES[name], task, size, rounds)})
                print(", ".join(f"{key} {value}" for key, value in costs[-1].items()), flush=True)
    made = {**provenance("transformers", "peft"), "threads": torch.get_num_threads()}
    for name, table in {"table": pd.DataFrame(rows), "cost": pd.DataFrame(costs)}.items():
        print(f"\n{table.to_string(index=False, float_format='%.2f', max_colwidth=40)}")
        if not arguments.smoke_test:
            arguments.results.mkdir(parents=True, exist_ok=True)
            path = arguments.results / f"{name}.csv"
            before = pd.read_csv(path) if path.exists() else table[:0]  # what was not tried now stays
            table = pd.concat([before[~before["model"].isin(table["model"])], table.assign(**made)])
            table = table.sort_values("model", key=lambda models: models.map(list(ARCHITECTURES).index), kind="stable")
            table.to_csv(path, index=False, float_format="%.4f")


def look_at(architecture: Architecture) -> tuple[dict[str, object], Task]:
    """A row of the table, and the task it is of."""
    task, shared = task_of(architecture), False
    reasons = {rule: trained(task, rule) for rule in RULES}
    if any("as one number" in reason for reason in reasons.values()):
        shared, task = True, replace(task, space=SearchSpace({**task.space}, per_batch=["rate"]))
        reasons = {rule: trained(task, rule) for rule in RULES}
    row: dict[str, object] = {"rate": ("batch" if shared else "example") if architecture.dropout else "none"}
    try:
        row |= compared(architecture, task)
    except FAILURES as error:
        row["equal_at_zero"] = said(error)
    return row | {f"trains_{rule}": reason or "yes" for rule, reason in reasons.items()}, task


def task_of(architecture: Architecture, wide: int = 1, examples: int = BATCH) -> Task:
    """The architecture at a width, and at a batch of so many examples."""
    space: dict[str, Any] = {"rate": Uniform(0.0, 0.9)} if architecture.dropout else {}

    def data(seed: int) -> Splits:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [architecture.inputs(n) for n in (2 * examples, examples, examples)]
            return Splits(*(Split(x, x if architecture.next_word else torch.randint(2, (len(x),))) for x in parts))

    def next_word(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    return Task(
        name="architecture",
        model=lambda: architecture.make(wide),
        data=data,
        space=SearchSpace({**space, "decay": LogUniform(1e-6, 1e-2)}),
        start={"decay": 1e-4} | ({"rate": 0.1} if architecture.dropout else {}),
        dropout={"*": "rate"} if architecture.dropout else {},
        penalties=(WeightDecay("decay"),),
        loss=next_word if architecture.next_word else F.cross_entropy,
        training=Training(epochs=1, batch_size=examples, train_steps=1, warmup_epochs=0, optimizer="AdamW", lr=1e-3),
    )


def trained(task: Task, rule: str) -> str:
    """Why two steps under a rule fail; nothing if they do not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(task, algorithm=rule)
            trainer.run_epoch()
    except FAILURES as error:
        return said(error)
    return trainer.diverged or ""


def compared(architecture: Architecture, task: Task) -> dict[str, object]:
    """How many layers respond, and whether outputs are those of the plain model at zero response and merged back."""
    torch.manual_seed(0)
    plain, inputs = architecture.make(1).eval(), architecture.inputs(BATCH)
    net = self_tuning(plain, task.space, start=task.start, dropout=task.dropout, inputs=inputs, norms=True)
    with torch.no_grad():
        expected = plain(inputs)
        with net.using(net.hyper.constant_sample()):
            at_zero = torch.allclose(net(inputs), expected, rtol=1e-4, atol=1e-5)
        for parameter in net.response_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        merged = torch.allclose(net.to_plain()(inputs), net(inputs), rtol=1e-4, atol=1e-5)
    layers = len(net.conversion.responding) + len(net.conversion.plain)
    return {
        "responding": f"{len(net.conversion.responding)} of {layers}",
        "left_plain": json.dumps(net.conversion.plain),
        "bound": len(net.conversion.bound),
        "equal_at_zero": at_zero,
        "equal_merged": merged,
    }


def cost(architecture: Architecture, tiny: Task, size: str, rounds: int) -> dict[str, object]:
    """What a cycle costs: medians and quartiles of the ratios over rounds in which all take turns.

    Args:
        architecture: The architecture.
        tiny: Its task; the space is the same at all sizes.
        size: One of `SIZES`.
        rounds: Rounds.
    """
    wide, least = SIZES[size]
    examples = BATCH
    while True:
        task = replace(task_of(architecture, wide, examples), space=tiny.space)
        task = replace(task, training=replace(task.training, train_steps=STEPS))
        train = task.data(0).train.take(torch.arange(examples))
        plain = torch_loop(task, train)
        plain()  # the first step makes the optimizer's state
        if not least or seconds(plain) >= least * STEPS or examples >= LARGEST_BATCH:
            break
        examples *= 2
    fixed, auto = (Trainer(task, algorithm=rule) for rule in ("fixed", "auto"))
    valid = auto.splits.valid.take(torch.arange(examples))
    cycles = {
        "plain": plain,
        "fixed": lambda: [fixed.rule.train_step(train) for _ in range(STEPS)],
        "auto": lambda: ([auto.rule.train_step(train) for _ in range(STEPS)], auto.rule.hyper_step(valid)),
    }
    for trainer in (fixed, auto):
        trainer.model.train()
    for _ in range(2):
        before = {trainer: trainer.meter.spent_flops for trainer in (fixed, auto)}
        cycles["fixed"](), cycles["auto"]()
    operations = {trainer: trainer.meter.spent_flops - before[trainer] for trainer in (fixed, auto)}
    times = pd.DataFrame([{name: seconds(cycle) for name, cycle in cycles.items()} for _ in range(rounds)])
    row = {
        "examples": examples,
        "parameters": sum(parameter.numel() for parameter in task.model().parameters()),
        "plain_ms": 1e3 * times["plain"].median() / STEPS,
        "operations": operations[auto] / operations[fixed],
    }
    for one, other in (("auto", "plain"), ("auto", "fixed"), ("fixed", "plain")):
        low, median, high = (times[one] / times[other]).quantile([0.25, 0.5, 0.75])
        name = f"{one}_over_{other}"
        row |= {name: median, f"{name}_quartile_1": low, f"{name}_quartile_3": high}
    return row | {"rounds": rounds}


def torch_loop(task: Task, batch: Batch) -> Callable[[], None]:
    """The plain model's training steps of a cycle, as one writes them without this project."""
    model = task.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.training.lr)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            task.loss(model(batch.inputs), batch.targets).backward()
            optimizer.step()

    return steps


def seconds(call: Callable[[], object]) -> float:
    began = time.process_time()  # others may use the machine
    call()
    return time.process_time() - began


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(str(error).splitlines()[0], 300, placeholder=' ...')}"


if __name__ == "__main__":
    main()
