"""Training loops that make one step when asked: the harness's, the transformers Trainer's, peft's comparison's.

Every loop runs whole, from one step's end to the next one's, in a thread of its own that stands still until it is
asked for a step: so loops that call back and loops that are called can take turns in one process, and nothing of them
is left out, data and bookkeeping included. As a program it is one loop behind a pipe, the harness's of any environment
or the Trainer's: ``python training_racers.py COURSE [OPTIM]`` makes a step for each line of its input.

References: transformers/trainer.py of transformers 5.23.0; in huggingface/peft@026d1e0 the file
method_comparison/MetaMathQA/run.py, function ``train``, whose order of calls :func:`comparison_loop` has, without its
evaluations and without progress bar and ``empty_cache``, which a CPU has none of. It divides the loss by all tokens;
here, as in both others, it is by the trained ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from harness.engine.context import EngineContext
from harness.engine.training import TrainingLoop
from harness.method import METHODS
from harness.settings import TrainSettings

try:
    from harness.catalogue.labels import load_labels
    from harness.catalogue.models import BaseModelSpec
    from harness.data.batches import MicroBatch
    from harness.tensors.decoder import find_decoder
except ModuleNotFoundError:  # where builds up to 4e63219 have them
    from harness.engine.data import MicroBatch  # type: ignore[no-redef]
    from harness.engine.decoder import find_decoder  # type: ignore[no-redef]
    from harness.labels import load_labels  # type: ignore[no-redef]
    from harness.models import BaseModelSpec  # type: ignore[no-redef]

RATE, MAX_NORM = 1e-4, 1.0
NUM_BATCHES = 8
"""Different ones, taken in turn."""
Report = Callable[[float], None]


@dataclass(frozen=True)
class Course:
    """What every loop trains: a LLaMA of some shape with random weights, in fp32, and on what."""

    label: str
    """Of ``suites/methods.toml``."""
    hidden_size: int
    intermediate_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    vocabulary: int
    rows: int
    length: int
    steps: int
    update_gap: int = 200
    """Of GaLore."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Lap:
    """One step."""

    seconds: float
    """The process's CPU time."""
    clock_seconds: float
    loss: float


def new_model(course: Course) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=course.vocabulary,
        hidden_size=course.hidden_size,
        intermediate_size=course.intermediate_size,
        num_hidden_layers=course.num_blocks,
        num_attention_heads=course.num_heads,
        num_key_value_heads=course.num_kv_heads,
        max_position_embeddings=course.length,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).train()


def new_ids(course: Course) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = (course.rows, course.length)
    return [torch.randint(0, course.vocabulary, size, generator=generator) for _ in range(NUM_BATCHES)]


def settings(course: Course) -> TrainSettings:
    return TrainSettings(
        data="random",
        prompt="plain",
        loss_on="all",
        packing=True,
        sequence_length=course.length,
        batch_size=course.rows,
        num_steps=course.steps,
        learning_rate=RATE,
        lr_scheduler="constant",
        max_grad_norm=MAX_NORM,
        dtype="fp32",
    )


def with_method(course: Course) -> tuple[nn.Module, Any, Any, EngineContext]:
    """Return model, method, optimizer and context of the label, all in fp32 and without dropout."""
    model, train = new_model(course), settings(course)
    entry = load_labels()[course.label]
    method_class = METHODS.get(entry.method)
    fields = method_class.Config.model_fields
    fp32 = {"moment_dtype": "fp32", "projector_dtype": "fp32", "adapter_dtype": "fp32", "lora_dropout": 0.0}
    values = {**entry.values(), **fp32, "update_gap": course.update_gap}
    method = method_class(
        method_class.Config.model_validate({key: value for key, value in values.items() if key in fields})
    )
    spec = BaseModelSpec(name="random", architecture="LlamaForCausalLM", packaged="random")
    context = EngineContext(seed=1, num_steps=course.steps, train=train, decoder=find_decoder(model, spec))
    model = method.prepare(model, context)
    return model, method, method.build_optimizer(model, context), context


class Racer:
    """A loop in a thread of its own that goes on when it is asked to."""

    def __init__(self, model: nn.Module, drive: Callable[[Report], None]) -> None:
        """Take what is trained and the loop, which calls what it is given after each step, with the loss."""
        self.model = model
        self._drive = drive
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._loss = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> Lap:
        """Let the loop go to the end of its next step."""
        cpu, clock = time.process_time(), time.perf_counter()
        self._go.release()
        self._done.acquire()
        lap = Lap(time.process_time() - cpu, time.perf_counter() - clock, self._loss)
        if self._error is not None:
            raise self._error
        return lap

    def close(self) -> None:
        """Let the loop end after the steps of its course."""
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._drive(self._report)
        except BaseException as error:  # it is raised where the step was asked for
            self._error = error
            self._done.release()

    def _report(self, loss: float) -> None:
        self._loss = loss
        self._done.release()
        self._go.acquire()


def harness_racer(course: Course) -> Racer:
    """Return the harness's own loop."""
    model, method, optimizer, context = with_method(course)
    loop = TrainingLoop(model, method, optimizer, context)
    ids = new_ids(course)

    def batches() -> Iterator[list[MicroBatch]]:
        for step in range(course.steps):
            one = ids[step % NUM_BATCHES]
            yield [MicroBatch(one, one, None, course.tokens, course.rows * (course.length - 1))]

    return Racer(model, lambda report: loop.run(batches(), lambda done, loss: report(loss)))


def trainer_racer(course: Course, optim: str) -> Racer:
    """Return the Trainer with its defaults but for what the course says; nothing is logged, saved or evaluated."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, ids = with_method(course)[0], new_ids(course)
    rows = [{"input_ids": row, "labels": row} for step in range(course.steps) for row in ids[step % NUM_BATCHES]]
    low_rank: dict[str, Any] = {}
    if optim.startswith("galore"):
        values = load_labels()["galore"].values()
        said = f"rank={values['rank']}, update_proj_gap={course.update_gap}, scale={values['scale']}, proj_type=std"
        low_rank = {"optim_target_modules": [r".*\.(self_attn|mlp)\..*"], "optim_args": said}
        low_rank["adam_epsilon"] = values["eps"]
    arguments = TrainingArguments(
        output_dir="unused",
        optim=optim,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_NORM,
        weight_decay=0.0,
        max_steps=course.steps,
        per_device_train_batch_size=course.rows,
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **low_rank,
    )

    class Told(Trainer):
        """Keeps the loss, which the Trainer gives nobody at each step."""

        loss: torch.Tensor

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.loss = super().training_step(*args, **kwargs)
            return self.loss

    def drive(report: Report) -> None:
        class Reports(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                report(float(trainer.loss))

        trainer = Told(model, arguments, train_dataset=rows, callbacks=[Reports()])
        trainer.train()

    return Racer(model, drive)


def comparison_loop(course: Course) -> Racer:
    """Return a loop with the calls of peft's method comparison, in their order."""
    model = with_method(course)[0]
    ids = new_ids(course)

    def drive(report: Report) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        for step in range(course.steps):
            input_ids = ids[step % NUM_BATCHES]
            num_items = course.rows * (course.length - 1)
            optimizer.zero_grad()
            loss = model(input_ids=input_ids, labels=input_ids.clone(), num_items_in_batch=num_items).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            report(loss.item())

    return Racer(model, drive)


class Elsewhere:
    """A loop in a process of its own, of this or another environment, behind a pipe."""

    def __init__(self, python: str, course: Course, optim: str | None = None) -> None:
        """Start it where no checkout lies, so that its own harness is imported.

        Args:
            python: Of the environment.
            course: What is trained.
            optim: Of the Trainer; None: the harness's loop.
        """
        command = [
            python,
            str(Path(__file__).resolve()),
            json.dumps(asdict(course)),
            *([] if optim is None else [optim]),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=_without_path()
        )
        assert self._process.stdout is not None
        self.harness = self._process.stdout.readline().strip()
        """Where its harness was imported from."""

    def step(self) -> Lap:
        """Let it make a step."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Lap(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _without_path() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def main() -> None:
    """Answer each line of the input with a step."""
    import harness

    course, *optims = sys.argv[1:]
    racer = (
        trainer_racer(Course(**json.loads(course)), *optims) if optims else harness_racer(Course(**json.loads(course)))
    )
    answers, sys.stdout = sys.stdout, sys.stderr  # what the Trainer prints
    print(harness.__file__, file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(racer.step())), file=answers, flush=True)


if __name__ == "__main__":
    main()
