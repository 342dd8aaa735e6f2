"""Which architectures of transformers convert, and how they train: a table, one small model of random weights each.

Each is made by a small configuration, converted with all its dropouts bound by `dropout={"*": "rate"}` and a weight
decay beside them, compared with the plain model at zero response, trained for two steps under each rule, and merged
back by `to_plain()`. A rate is drawn for each example where nothing reads it as a number, and for the batch elsewhere.
What a step of the rule `auto` costs over a plain one is measured in processor time, on cycles of both that take turns,
with the hyper-step in its due share; networks as small as these spend it on calls and little on arithmetic. Prints the
table and writes it to experiments/results/architectures/. Needs transformers and peft, which tune_stn does not.

    python experiments/architectures.py              # some minutes
    python experiments/architectures.py --models BERT GPT-2
    python experiments/architectures.py --smoke-test
"""

from __future__ import annotations

import argparse
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
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn import SearchSpace, Task, Training, Uniform, self_tuning
from tune_stn.data.splits import Split, Splits
from tune_stn.nn import WeightDecay
from tune_stn.space import LogUniform
from tune_stn.training import Trainer

RULES = ("fixed", "auto", "stn", "delta-stn")
WORDS, TIME, BATCH = 50, 12, 8
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
        make: Makes the model.
        inputs: Number of examples -> what it takes.
        dropout: Whether it has any dropout; without one, a weight decay alone is tuned.
        next_word: Whether it predicts the next word of each, and not a class of each example.
    """

    make: Callable[[], nn.Module]
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


ENCODER = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "num_labels": 2,
}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "num_labels": 2}


def bert(**more: Any) -> nn.Module:
    return Called(transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER, **more)), "input_ids")


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=WORDS, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=32, num_labels=2
    )
    return Called(transformers.DistilBertForSequenceClassification(config), "input_ids")


def roberta() -> nn.Module:
    return Called(
        transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**ENCODER, pad_token_id=1)),
        "input_ids",
    )


def gpt2(**more: Any) -> nn.Module:
    config = transformers.GPT2Config(**GPT, pad_token_id=0, **more)
    return Called(transformers.GPT2ForSequenceClassification(config), "input_ids", use_cache=False)


def checkpointed_gpt2() -> nn.Module:
    model = gpt2()
    model.net.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator, union-attr]
    return model


def tied_gpt2() -> nn.Module:
    return Called(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT)), "input_ids", use_cache=False)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**ENCODER, num_key_value_heads=1, pad_token_id=0)
    return Called(transformers.LlamaForSequenceClassification(config), "input_ids", use_cache=False)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=WORDS,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        num_labels=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return Called(transformers.T5ForSequenceClassification(config), "input_ids", use_cache=False)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    return Called(transformers.ViTForImageClassification(config), "pixel_values")


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, patch_size=4, num_labels=2, drop_path_rate=0.2
    )
    return Called(transformers.ConvNextForImageClassification(config), "pixel_values")


def wav2vec2() -> nn.Module:
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
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


def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=8,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
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


def mamba() -> nn.Module:
    config = transformers.MambaConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, state_size=4)
    return Called(transformers.MambaForCausalLM(config), "input_ids", use_cache=False)


def lora() -> nn.Module:
    plain = transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], lora_dropout=0.1)
    return Called(peft.get_peft_model(plain, config), "input_ids")


ARCHITECTURES: dict[str, Architecture] = {
    "BERT": Architecture(make=bert, inputs=tokens),
    "BERT, eager attention": Architecture(make=lambda: bert(attn_implementation="eager"), inputs=tokens),
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
    torch.set_num_threads(1)
    names = ["GPT-2", "ConvNeXt"] if arguments.smoke_test else arguments.models
    rows = []
    for name in names:
        rows.append({"model": name, **look_at(ARCHITECTURES[name], 2 if arguments.smoke_test else arguments.rounds)})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.2f"))
    if not arguments.smoke_test:
        arguments.results.mkdir(parents=True, exist_ok=True)
        table.assign(torch=torch.__version__, transformers=transformers.__version__).to_csv(
            arguments.results / "table.csv", index=False
        )


def look_at(architecture: Architecture, rounds: int) -> dict[str, object]:
    """A row of the table."""
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
    if not (reasons["fixed"] or reasons["auto"]):
        row["auto_over_plain"] = cost(task, rounds)
    return row | {f"trains_{rule}": reason or "yes" for rule, reason in reasons.items()}


def task_of(architecture: Architecture) -> Task:
    space: dict[str, Any] = {"rate": Uniform(0.0, 0.9)} if architecture.dropout else {}

    def data(seed: int) -> Splits:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [architecture.inputs(n) for n in (2 * BATCH, BATCH, BATCH)]
            return Splits(*(Split(x, x if architecture.next_word else torch.randint(2, (len(x),))) for x in parts))

    def next_word(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    return Task(
        name="architecture",
        model=architecture.make,
        data=data,
        space=SearchSpace({**space, "decay": LogUniform(1e-6, 1e-2)}),
        start={"decay": 1e-4} | ({"rate": 0.1} if architecture.dropout else {}),
        dropout={"*": "rate"} if architecture.dropout else {},
        penalties=(WeightDecay("decay"),),
        loss=next_word if architecture.next_word else F.cross_entropy,
        training=Training(epochs=1, batch_size=BATCH, train_steps=1, warmup_epochs=0, optimizer="AdamW", lr=1e-3),
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
    plain, inputs = architecture.make().eval(), architecture.inputs(BATCH)
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
        "bound": len(net.conversion.bound),
        "equal_at_zero": at_zero,
        "equal_merged": merged,
    }


def cost(task: Task, rounds: int) -> float:
    """What steps of `auto` cost, in plain steps: the median over rounds in which both take turns."""
    trainers = [Trainer(task, algorithm=rule) for rule in ("auto", "fixed")]
    train, valid = (split.take(torch.arange(BATCH)) for split in (trainers[0].splits.train, trainers[0].splits.valid))
    steps = 0

    def tuned() -> None:
        nonlocal steps
        steps = 0
        while not steps or not trainers[0].rule.due:
            trainers[0].rule.train_step(train)
            steps += 1
        trainers[0].rule.hyper_step(valid)

    def plain() -> None:
        for _ in range(steps):
            trainers[1].rule.train_step(train)

    for trainer in trainers:
        trainer.model.train()
    tuned()
    plain()
    return float(pd.Series([seconds(tuned) / seconds(plain) for _ in range(rounds)]).median())


def seconds(call: Callable[[], None]) -> float:
    began = time.process_time()  # others may use the machine
    call()
    return time.process_time() - began


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"


if __name__ == "__main__":
    main()
