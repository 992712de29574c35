"""The training loop of every method: schedule, validation, best weights, early stop, resume.

It knows nothing of teachers, losses or discriminators: a train script passes
`compute_losses(batch)`, whose values are summed, minimised and logged by their keys, which are the
same in every step.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cmkd.evaluation.metrics import coco_metrics, none_for_nan
from cmkd.evaluation.predict import predict, progress_bar, to_device
from cmkd.runtime import checkpoint, claims, distributed, hardware
from cmkd.runtime.failures import StopRequest, fetch, is_out_of_memory, warn
from cmkd.runtime.files import UserError, append_record, reason_of, refuse_unwritable, save_json
from cmkd.runtime.weights import save_torch, settings_file, sha256_of
from dataset import Batch
from utils import seed_everything

WARM_UP_ITERATIONS, WARM_UP_START = 1000, 0.001
DECAY_EPOCHS, DECAY = 5, 0.1
# Reading a loss synchronises the GPU, which then idles until the next step. A CPU loses nothing.
STEPS_BETWEEN_FETCHES = {"cuda": 20}
PUBLISHED_SIZE = 500  # shorter side in px
STEPS_BEFORE_WARNING = 3  # of how long an epoch takes on a CPU

ComputeLosses = Callable[[Batch], dict[str, Tensor]]
Step = tuple[dict[str, Tensor], list[str]]  # losses that are still on the device; names of frames


@dataclass(frozen=True)
class Options:
    """What the loop needs of a script's arguments. The defaults are the published recipe."""

    epochs: int = 100
    patience: int = 5  # stop once more epochs than this have passed since the best
    min_size: int = PUBLISHED_SIZE
    batch_size: int = 4  # frames in memory at a time; the loader's batches hold those of a step
    lr: float = 0.005
    decay_epochs: int = DECAY_EPOCHS  # from one cut of the learning rate to the next
    amp: bool = False  # bfloat16 autocast
    seed: int = 0
    deterministic: bool = False  # on CUDA too
    resume: bool = False
    tensorboard: bool = False
    checkpoint_minutes: float = 10.0
    max_iterations: int | None = None  # steps of all epochs
    run_dir: Path = Path("runs")  # the log and the training state

    def steps_left(self, iteration: int) -> int | float:
        """Steps that `max_iterations` still allows after so many."""
        return max(0, (self.max_iterations or math.inf) - iteration)

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> "Options":
        """The loop's options in a script's arguments; others are ignored. Raises `TypeError`."""
        own = {one.name: arguments[one.name] for one in fields(cls) if one.name in arguments}
        for one in fields(cls):
            expected = int | float if one.type is float else one.type
            if one.name in own and not isinstance(own[one.name], expected):
                raise TypeError(f"{one.name} must be {expected}, not {own[one.name]!r}")
        return cls(**own)


@dataclass
class Progress:
    """How far a run has come; part of every checkpoint."""

    epoch: int = 0  # finished ones
    iteration: int = 0  # steps of all epochs
    best_AP: float = -1.0  # noqa: N815 - as in the log
    best_epoch: int = 0
    # Of the epoch under way:
    steps: int = 0
    frames: int = 0  # of all processes
    seconds: float = 0.0
    loss_sums: dict[str, float] = field(default_factory=dict)

    def count_step(self, frames: int) -> None:
        """Count a step with `frames` frames."""
        self.iteration += 1
        self.steps += 1
        self.frames += frames

    def add_losses(self, losses: dict[str, float]) -> None:
        """Add the losses of a step to the epoch's sums."""
        for name, value in losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value

    def mean_losses(self) -> dict[str, float]:
        """Means over the epoch's steps."""
        return {name: total / self.steps for name, total in self.loss_sums.items()}

    def finish_epoch(self, ap: float) -> bool:
        """End the epoch; return whether its validation AP is the best so far."""
        self.epoch += 1
        self.steps, self.frames, self.seconds, self.loss_sums = 0, 0, 0.0, {}
        if is_best := ap > self.best_AP:
            self.best_AP, self.best_epoch = ap, self.epoch
        return is_best

    def may_continue(self, options: Options) -> bool:
        """Whether an epoch is under way, or epochs, patience and max_iterations allow another."""
        return self.steps > 0 or (
            self.epoch < options.epochs
            and self.epoch - self.best_epoch <= options.patience
            and options.steps_left(self.iteration) > 0
        )


def learning_rate(
    base: float, epoch: int, step: int, steps_per_epoch: int, decay_epochs: int = DECAY_EPOCHS
) -> float:
    """The published schedule: linear warm-up in the first epoch, then a tenth every 5 epochs.

    `decay_epochs` is the number of epochs from one cut to the next. Warm-up goes from base / 1000
    over min(1000, steps - 1) steps. `epoch` counts from 1, `step` from 0 within it. A function of
    these alone has no state to save, and an epoch that `--max-iterations` cut short shifts nothing.
    """
    warm_up = min(WARM_UP_ITERATIONS, steps_per_epoch - 1)
    if epoch == 1 and step < warm_up:
        return base * (WARM_UP_START + (1 - WARM_UP_START) * step / warm_up)
    return base * DECAY ** ((epoch - 1) // decay_epochs)


def fit(
    model: nn.Module,
    compute_losses: ComputeLosses,
    optimizer: torch.optim.Optimizer,
    train_loader: DataLoader,
    val_loader: DataLoader,
    *,
    weights: Path,
    settings: dict[str, Any],
    arguments: dict[str, Any],
    also_trained: nn.Module | None = None,
) -> None:
    """Train `model` until the epochs are over or the validation AP stops rising.

    `model` is what is validated; the state_dict of its best epoch goes to `weights`, with
    `settings` (what evaluation needs to know) and `arguments` as JSON beside it. `also_trained`
    (discriminators) is trained too and is part of the training checkpoint. Everything trained must
    be in `optimizer`; `fused=True` saves a synchronisation in each step on CUDA. `arguments` are
    the script's options: `Options` are taken from them, all are logged, and none may change when
    the run is resumed, except those in `checkpoint.MAY_CHANGE_ON_RESUME`.

    Raises `UserError` if the run exists already, if arguments or labels changed on resume, for
    files that cannot be read or written, and for a loss that is not finite. Ctrl-C and SIGTERM end
    the program once the step is done and saved (on CUDA up to 20 steps later).
    """
    options = Options.of(arguments)
    log_file = options.run_dir / "log.jsonl"
    if not val_loader.dataset.has_boxes:
        raise UserError(
            f"{val_loader.dataset.list_file}: no frame has a box of the classes trained, so no "
            "validation AP can be measured: name another --val-list or --classes"
        )
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    also_trained = nn.Identity() if also_trained is None else also_trained
    trained = nn.ModuleDict({"model": model, "also_trained": also_trained})
    distributed.synchronise_norms(trained)
    data = train_loader.dataset.fingerprints | val_loader.dataset.fingerprints
    progress, random_states = begin_run(options, weights, trained, optimizer, arguments, data)
    warn_of_classes_without_boxes(train_loader.dataset, "the network will not learn it")
    warn_of_classes_without_boxes(val_loader.dataset, "the validation AP is of the other classes")
    is_first = distributed.rank() == 0
    tested = set(val_loader.dataset.names)
    if shared := [name for name in train_loader.dataset.names if name in tested]:
        print(
            f"{len(shared)} frames of {val_loader.dataset.list_file}, like {shared[0]}, are "
            "trained on: the validation AP will say nothing"
        )
    show_epoch = open_tensorboard(options, progress) if options.tensorboard and is_first else None

    def save() -> None:
        states = distributed.gather(checkpoint.random_states())
        if is_first:
            content = {name: part.state_dict() for name, part in trained.items()}
            content |= {"optimizer": optimizer.state_dict(), "state": asdict(progress)}
            content |= {"random_states": states, "arguments": checkpoint.comparable(arguments)}
            content |= {"threads": torch.get_num_threads(), "data": data}
            checkpoint.save(options.run_dir, content)
            claims.claim(weights, options.run_dir, options.checkpoint_minutes)

    with StopRequest() as stop, claimed(weights, options):
        if is_first:
            append_record(log_file, start_record(arguments, settings))
        while progress.may_continue(options):
            begin_epoch(train_loader, progress, options.seed, random_states)
            random_states = []
            train_one_epoch(
                trained, compute_losses, optimizer, train_loader, progress, options, stop, save
            )
            losses, train_seconds = progress.mean_losses(), progress.seconds
            metrics, results, val_seconds = validate(model, val_loader, options.amp, stop)

            is_best = progress.finish_epoch(metrics["AP"])
            record = {
                "epoch": progress.epoch,
                "iteration": progress.iteration,
                "best_AP": progress.best_AP,
                "best_epoch": progress.best_epoch,
                "losses": losses,
                "val": none_for_nan(metrics),
                "lr": optimizer.param_groups[0]["lr"],
                "train_seconds": train_seconds,
                "val_seconds": val_seconds,
            }
            if is_first:
                if is_best:
                    save_best(weights, model, record, settings, arguments, val_loader.dataset)
                append_record(log_file, record)
            save()
            if show_epoch:
                show_epoch(record, val_loader.dataset, results)
            print(epoch_line(record))
    best = f"best AP {progress.best_AP:.4f} at epoch {progress.best_epoch}"
    print(f"{best}: {weights}; log: {log_file}")


def warn_of_classes_without_boxes(dataset: Dataset, consequence: str) -> None:
    """Warn of entries of --classes that no frame of a list has a box of."""
    if empty := dataset.classes_without_boxes:
        warn(f"{dataset.list_file}: no frame has a box of {' or '.join(empty)}: {consequence}")


@contextlib.contextmanager
def claimed(weights: Path, options: Options) -> Iterator[None]:
    """Hold the claim on the weights file for this run. Raises `UserError`."""
    distributed.on_first(lambda: claims.claim(weights, options.run_dir, options.checkpoint_minutes))
    try:
        yield
    finally:
        if distributed.rank() == 0:
            claims.release(weights, options.run_dir)


def train_one_epoch(
    trained: nn.Module,
    compute_losses: ComputeLosses,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    progress: Progress,
    options: Options,
    stop: StopRequest,
    save: Callable[[], None],
) -> None:
    """Train the rest of an epoch, which ends early at `max_iterations`; count it in `progress`.

    Calls `save` every `checkpoint_minutes`, before it ends the program on a stop request, and at
    the end.
    """
    device = next(trained.parameters()).device
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    epoch, batches = progress.epoch + 1, loader.batch_sampler
    steps = min(len(loader) - batches.first, options.steps_left(progress.iteration))
    steps_between_fetches = STEPS_BETWEEN_FETCHES.get(device.type, 1)
    pending: list[Step] = []
    fetched_at = saved_at = time.perf_counter()
    bar = progress_bar(f"epoch {epoch}", loader, progress.frames, batches.frames)
    trained.train()
    for step, (images, targets) in enumerate(islice(fetch(loader), steps), batches.first):
        rate = learning_rate(options.lr, epoch, step, len(loader), options.decay_epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        losses = compute_gradients(compute_losses, to_device((images, targets), device), options)
        distributed.average_gradients(parameters)
        distributed.average_norm_statistics(trained)
        losses["gradient_norm"] = norm_of_gradients(parameters)
        step_if_finite(optimizer, losses)
        pending.append((losses, [target["name"] for target in targets]))
        progress.count_step(batches.batch_size)
        bar.update(len(images) * distributed.world_size())
        is_last = step + 1 == batches.first + steps
        if len(pending) < steps_between_fetches and progress.iteration > 1 and not is_last:
            continue

        now = time.perf_counter()
        wants = [stop.signal > 0, now - saved_at > 60 * options.checkpoint_minutes]
        losses, (stops, saves) = fetch_losses(pending, wants, progress, options.run_dir)
        pending = []
        bar.set_postfix(postfix(rate, losses), refresh=False)
        now = time.perf_counter()
        progress.seconds += now - fetched_at
        fetched_at = now
        if device.type == "cpu" and progress.iteration == min(STEPS_BEFORE_WARNING, steps):
            warn_of_long_epochs(options, progress, len(loader))
        if stops or saves:
            save()
            saved_at = now
        if stops:
            bar.close()
            stop.end_program(f"after step {step + 1} of epoch {epoch}")
    bar.close()
    save()


def warn_of_long_epochs(options: Options, progress: Progress, steps_per_epoch: int) -> None:
    """Say how long an epoch takes on a CPU, judged by the first steps, at the published size."""
    if options.min_size < PUBLISHED_SIZE:
        return
    minutes = progress.seconds / progress.steps * steps_per_epoch / 60
    duration = f"{minutes / 60:.1f} hours" if minutes > 60 else f"{minutes:.1f} minutes"
    with tqdm.external_write_mode(sys.stderr):  # not in the middle of a progress bar
        warn(
            f"an epoch takes about {duration} on this CPU, without its validation: use a GPU, or "
            "python reproduce.py --preset cpu for small networks (README)"
        )


def compute_gradients(
    compute_losses: ComputeLosses, batch: Batch, options: Options
) -> dict[str, Tensor]:
    """Add a step's gradients to the parameters; return the mean losses, detached.

    `batch_size` frames are in memory at a time; each part counts by its share of the frames.
    """
    images, targets = batch
    size, means = options.batch_size, {}
    for start in range(0, len(images), size):
        part = images[start : start + size], targets[start : start + size]
        with torch.autocast(images[0].device.type, torch.bfloat16, enabled=options.amp):
            losses = compute_losses(part)
        share = len(part[0]) / len(images)
        (share * sum(losses.values())).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + share * value.detach()
    return means


def norm_of_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar."""
    return get_total_norm([one.grad for one in parameters if one.grad is not None])


def step_if_finite(optimizer: torch.optim.Optimizer, values: dict[str, Tensor]) -> None:
    """The optimizer's step, skipped if a value is NaN or infinite.

    Fused kernels check it on the device; another optimizer synchronises the GPU.
    """
    all_finite = torch.stack(list(values.values())).isfinite().all()
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = 1 - all_finite.float()
        optimizer.step()
    elif all_finite:
        optimizer.step()


def fetch_losses(
    pending: list[Step], wants: list[bool], progress: Progress, run_dir: Path
) -> tuple[dict[str, float], list[bool]]:
    """Copy the losses of pending steps to the host, and add them to the epoch's sums.

    They are means over all processes. Returns those of the last step, and for each of `wants`
    whether any process wants it. All go in one transfer, the only point where our code waits for
    the GPU. Raises `UserError` for a loss or gradient that is not finite.
    """
    keys = list(pending[0][0])
    if any(list(losses) != keys for losses, _ in pending):
        raise ValueError(f"compute_losses must return the same keys in every step: {keys}")
    table = torch.stack([torch.stack(list(losses.values())).float() for losses, _ in pending])
    everything = torch.cat([table.flatten(), table.new_tensor(wants)])
    totals = distributed.total(everything).tolist()
    means = [total / distributed.world_size() for total in totals[: table.numel()]]
    steps = [
        dict(zip(keys, means[start : start + len(keys)], strict=True))
        for start in range(0, table.numel(), len(keys))
    ]
    for ago, (losses, (_, names)) in enumerate(zip(steps, pending, strict=True), 1 - len(steps)):
        if not all(map(math.isfinite, losses.values())):
            refuse_step(losses, names, progress.epoch + 1, progress.iteration + ago, run_dir)
        del losses["gradient_norm"]
        progress.add_losses(losses)
    return steps[-1], [total > 0 for total in totals[table.numel() :]]


def refuse_step(
    losses: dict[str, float], names: list[str], epoch: int, step: int, run_dir: Path
) -> NoReturn:
    """Raise `UserError` for a step that is not finite, and write RUN_DIR/nonfinite.json."""
    frames = [name for part in distributed.gather(names) for name in part]
    if distributed.rank() == 0:
        values = {name: str(value) for name, value in losses.items()}
        report = {"epoch": epoch, "step": step, "frames": frames, **values}
        save_json(report, run_dir / "nonfinite.json")
    text = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    raise UserError(
        f"non-finite loss or gradient at epoch {epoch}, step {step}: {text}; frames "
        f"{', '.join(frames)} ({run_dir / 'nonfinite.json'}); the step was not taken and earlier "
        "checkpoints are intact: lower --lr, or look at these frames"
    )


def postfix(rate: float, losses: dict[str, float]) -> dict[str, float]:
    """What the progress bar shows; a terminal of 80 columns has room for the first two."""
    shown = {name.removeprefix("loss_"): value for name, value in losses.items()}
    return {"lr": rate, "loss": sum(losses.values()), **shown}


def begin_run(
    options: Options,
    weights: Path,
    trained: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    arguments: dict[str, Any],
    data: dict[str, str],
) -> tuple[Progress, list[dict[str, Any]]]:
    """Start or resume a run: load its newest checkpoint, set the threads, print the device.

    `data` has the fingerprints of the lists. Returns the progress and, within an epoch, the random
    states of all processes. The first process reads the checkpoint, so no other needs the folder.
    Raises `UserError` if a new run would overwrite an old one, for other arguments or data, and for
    a checkpoint that does not fit.
    """
    run_dir = options.run_dir
    log_file = run_dir / "log.jsonl"

    def load() -> dict[str, Any] | None:
        content = checkpoint.load(run_dir) if options.resume else None
        if content:
            now = checkpoint.comparable(arguments)
            checkpoint.refuse_other_arguments(run_dir, content["arguments"], now)
            # Checkpoints of earlier versions have none.
            checkpoint.refuse_other_data(run_dir, content.get("data", data), data)
        # A run that stopped before its first checkpoint has a log, no state and no weights: it
        # starts anew.
        elif weights.is_file() or not (options.resume and log_file.is_file()):
            checkpoint.refuse_overwriting(run_dir, weights, options.resume)
        for file in (weights, log_file):
            refuse_unwritable(file)
        checkpoint.remove_unfinished_files(run_dir, weights)
        return content

    progress, random_states = Progress(), []
    content = distributed.on_first(load) or {}
    # Checkpoints of earlier versions have no number of threads.
    hardware.start(next(trained.parameters()).device, options.amp, content.get("threads"))
    if content:
        try:
            for name, part in trained.items():
                part.load_state_dict(content[name])
            optimizer.load_state_dict(content["optimizer"])
            progress = Progress(**checkpoint.flat_state(content["state"]))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise checkpoint.checkpoint_error(content["file"], reason_of(error)) from None
        within = f" and {progress.steps} steps" if progress.steps else ""
        print(
            f"resuming after epoch {progress.epoch}{within} from {content['file']}; "
            f"best AP {progress.best_AP:.4f}"
        )
        random_states = content["random_states"] if progress.steps else []
    distributed.on_first(lambda: checkpoint.cut_log(log_file, progress.epoch))
    distributed.copy_from_first(trained)
    return progress, random_states


def begin_epoch(
    loader: DataLoader, progress: Progress, seed: int, random_states: list[dict[str, Any]]
) -> None:
    """Set the random numbers and the order of frames of an epoch, or of the rest of one.

    With more processes than before, a new process draws other random numbers. The epoch continues
    after the last batch that is whole for the present number of processes.
    """
    epoch = progress.epoch + 1
    epoch_seed = seed_everything(seed, epoch)
    seed_everything(seed, epoch, distributed.rank())
    if distributed.rank() < len(random_states):
        checkpoint.set_random_states(random_states[distributed.rank()])
    loader.batch_sampler.begin(epoch_seed, progress.frames)
    loader.dataset.seed_flips(epoch_seed)


def validate(
    model: nn.Module, loader: DataLoader, amp: bool, stop: StopRequest
) -> tuple[dict[str, float], list[dict[str, Any]], float]:
    """COCO's twelve numbers on the loader's list, the COCO results, and the seconds it took."""
    started = time.perf_counter()
    results = predict(model, loader, amp, stop)
    # pycocotools is no faster on several processes.
    metrics = distributed.on_first(lambda: coco_metrics(loader.dataset.ground_truth(), results))
    return metrics, results, time.perf_counter() - started


def start_record(arguments: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The log line that is written when a run starts or resumes."""
    return {
        "arguments": arguments,
        "settings": settings,
        "versions": hardware.versions(),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "start": time.strftime("%F %T"),
    }


def epoch_line(record: dict[str, Any]) -> str:
    """What is printed of an epoch's record."""
    return (
        f"epoch {record['epoch']}: loss {sum(record['losses'].values()):.4f}  "
        f"val AP {record['val']['AP']:.4f}  AP50 {record['val']['AP50']:.4f}  "
        f"best AP {record['best_AP']:.4f} (epoch {record['best_epoch']})  "
        f"{record['train_seconds']:.0f} + {record['val_seconds']:.0f} s"
    )


def save_best(
    weights: Path,
    model: nn.Module,
    record: dict[str, Any],
    settings: dict[str, Any],
    arguments: dict[str, Any],
    val_set: Dataset,
) -> None:
    """Write the best weights, and the JSON beside them that says what they are and their AP."""
    save_torch(model.state_dict(), weights)
    content = {
        **settings,
        "epoch": record["epoch"],
        "val": record["val"],
        "val_fingerprint": val_set.fingerprint,
        "sha256": sha256_of(weights),
        "arguments": arguments,
        "versions": hardware.versions(),
    }
    save_json(content, settings_file(weights))


def open_tensorboard(options: Options, progress: Progress) -> Callable[..., None]:
    """A function that shows an epoch (its record, the validation set, COCO results) in TensorBoard.

    Raises `UserError` if tensorboard is not installed.
    """
    from cmkd.viewing import tensorboard_log

    board = tensorboard_log.open_board(options.run_dir, progress.epoch)
    return partial(tensorboard_log.show_epoch, board)
