"""The loop that is the same for every method: epochs, schedule, validation, best weights, early stop, resume.

It knows nothing of teachers, losses or discriminators: a train script passes `compute_losses(batch)`, whose values are
summed, minimised and logged by their keys.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from tqdm import tqdm

from cmkd.evaluation.metrics import coco_metrics, finite, to_coco_results
from cmkd.runtime import checkpoint, distributed
from cmkd.runtime.failures import StopRequest, is_out_of_memory, naming_dead_workers
from cmkd.viewing.tensorboard_log import open_board, show_epoch
from utils import (
    UserError,
    append_record,
    reason_of,
    refuse_unwritable,
    save_json,
    save_torch,
    seed_everything,
    versions,
    warn,
)

Batch = tuple[list[Tensor], list[dict[str, Any]]]
Unread = list[tuple[dict[str, Tensor], list[dict[str, Any]]]]  # losses and targets of steps, not yet known to the host

WARM_UP_ITERATIONS, WARM_UP_START = 1000, 0.001
EPOCHS_PER_DECAY, DECAY = 5, 0.1
PUBLISHED_BATCH = 4
# To read a loss is to wait for the device, which then has nothing to do until the next step is there. A CPU loses
# nothing by it.
STEPS_BETWEEN_READS = {"cuda": 20}


def learning_rate(base: float, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The published schedule: linear warm-up from base/1000 over min(1000, steps - 1) steps of the first epoch, then a
    tenth after every 5 epochs.

    `epoch` counts from 1, `step` from 0 within it. A function of these alone, so there is no state to save, and an
    epoch that `--max-iterations` cut short shifts nothing.
    """
    warm_up = min(WARM_UP_ITERATIONS, steps_per_epoch - 1)
    if epoch == 1 and step < warm_up:
        return base * (WARM_UP_START + (1 - WARM_UP_START) * step / warm_up)
    return base * DECAY ** ((epoch - 1) // EPOCHS_PER_DECAY)


def fit(model: nn.Module, compute_losses: Callable[[Batch], dict[str, Tensor]], optimizer: torch.optim.Optimizer,
        train_loader: DataLoader, val_loader: DataLoader, *, weights: Path, run_dir: Path, settings: dict[str, Any],
        arguments: dict[str, Any], also_trained: nn.Module | None = None,
        measure: Callable[[], dict[str, Any]] | None = None) -> None:
    """Train `model` until the epochs are done or the validation AP stops rising.

    `model` is what is validated and whose best state_dict goes to `weights`, with `settings` (what evaluation needs to
    know) and `arguments` as JSON beside it. `also_trained` (discriminators) is trained along and kept in the training
    checkpoint. Everything trained must be in `optimizer`; on CUDA, one of torch's with `fused=True` saves a wait for
    the device in each step. `arguments` are the script's parsed options: `epochs`, `patience`, `seed`, `amp`, `resume`,
    `max_iterations` and others steer the loop, all are logged. `measure` is what is worth knowing before training and
    takes long: it is called once nothing speaks against the run, and adds to `settings`. Raises `UserError` for a run
    that is there already, settings that changed on resume, files that cannot be read or written, too little memory, or
    a loss that is not finite; ends the program on Ctrl-C and SIGTERM once the step is done and saved (on CUDA, up to
    `STEPS_BETWEEN_READS` steps later).
    """
    trained = nn.ModuleDict({"model": model, "also_trained": nn.Identity() if also_trained is None else also_trained})
    log_file = run_dir / "log.jsonl"
    if not val_loader.dataset.has_boxes:
        raise UserError(f"{val_loader.dataset.list_file}: no frame has a box of the classes trained, so no validation "
                        "AP can be measured: name another --val-list or --classes")
    if arguments["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    distributed.synchronise_norms(trained)
    train_loader.dataset.skip_bad = arguments["skip_bad"] > 0
    state = begin_run(run_dir, weights, trained, optimizer, arguments)
    if not train_loader.dataset.has_boxes:
        warn(f"{train_loader.dataset.list_file}: no frame has a box of the classes trained: nothing will be learned "
             "but background")

    board = open_board(run_dir, state["epoch"]) if arguments["tensorboard"] and distributed.rank() == 0 else None

    def save() -> None:
        random_states = distributed.gather(checkpoint.random_states())
        if distributed.rank() == 0:
            checkpoint.save(run_dir, {
                "model": model.state_dict(), "also_trained": trained["also_trained"].state_dict(),
                "optimizer": optimizer.state_dict(), "state": state, "random_states": random_states,
                "arguments": checkpoint.comparable(arguments)})

    with StopRequest() as stop:
        if measure:
            settings = {**settings, **measure()}
        if distributed.rank() == 0:
            append_record(log_file, {"arguments": arguments, "settings": settings, "versions": versions(),
                                     "processes": distributed.world_size(), "start": time.strftime("%F %T")})
        while has_work_left(state, arguments):
            losses, train_seconds = train_one_epoch(trained, compute_losses, optimizer, train_loader, state, arguments,
                                                    run_dir, stop, save)
            started = time.perf_counter()
            results = predict(model, val_loader, arguments["amp"], stop)
            metrics = score(val_loader, results)
            val_seconds = time.perf_counter() - started
            state.update(epoch=state["epoch"] + 1, under_way=None)
            if metrics["AP"] > state["best_AP"]:
                state.update(best_AP=metrics["AP"], best_epoch=state["epoch"])
                if distributed.rank() == 0:
                    save_torch(model.state_dict(), weights)
                    save_json({**settings, "epoch": state["epoch"], "val": finite(metrics), "arguments": arguments,
                               "versions": versions()}, weights.with_suffix(".json"))
            record = {**{name: state[name] for name in ("epoch", "iteration", "best_AP", "best_epoch")},
                      "skipped": len(state["skipped"]), "losses": losses, "val": finite(metrics),
                      "lr": optimizer.param_groups[0]["lr"], "train_seconds": train_seconds, "val_seconds": val_seconds}
            if distributed.rank() == 0:
                append_record(log_file, record)
            save()
            if board:
                show_epoch(board, record, val_loader.dataset, val_loader.dataset.ground_truth(), results)
            print(f"epoch {state['epoch']}: loss {sum(losses.values()):.4f}  val AP {metrics['AP']:.4f}  "
                  f"AP50 {metrics['AP50']:.4f}  best AP {state['best_AP']:.4f} (epoch {state['best_epoch']})  "
                  f"{train_seconds:.0f} + {val_seconds:.0f} s")
    print(f"best AP {state['best_AP']:.4f} at epoch {state['best_epoch']}: {weights}; log: {log_file}")


def begin_run(run_dir: Path, weights: Path, trained: nn.Module, optimizer: torch.optim.Optimizer,
              arguments: dict[str, Any]) -> dict[str, Any]:
    """Load the newest checkpoint of a run that goes on into networks and optimizer, or see that a new one destroys
    nothing; return the loop's state. The first process reads, so that no other needs the folder.

    Raises `UserError` for a run that is there already, other settings, files that cannot be written, and a file that
    is no training checkpoint of these networks.
    """
    def prepare() -> dict[str, Any] | None:
        content = checkpoint.load(run_dir) if arguments["resume"] else None
        if content:
            checkpoint.refuse_other_settings(run_dir, content["arguments"], checkpoint.comparable(arguments))
        # A run that stopped before its first checkpoint has a log and no state: it starts anew.
        elif not (arguments["resume"] and (run_dir / "log.jsonl").is_file()):
            checkpoint.refuse_overwriting(run_dir, weights)
        for file in (weights, run_dir / "log.jsonl"):
            refuse_unwritable(file)
        checkpoint.remove_unfinished(run_dir, weights)
        return content

    state = {"epoch": 0, "iteration": 0, "best_AP": -1.0, "best_epoch": 0, "skipped": {}, "under_way": None}
    if content := distributed.on_first(prepare):
        try:
            for name in ("model", "also_trained"):
                trained[name].load_state_dict(content[name])
            optimizer.load_state_dict(content["optimizer"])
            state = {name: content["state"][name] for name in state}
            if state["under_way"]:
                state["under_way"]["random_states"] = content["random_states"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise checkpoint.not_a_checkpoint(content["file"], reason_of(error)) from None
        within = f" and {state['under_way']['steps']} steps" if state["under_way"] else ""
        print(f"going on after epoch {state['epoch']}{within} of {content['file']}; best AP {state['best_AP']:.4f}")
    distributed.on_first(lambda: checkpoint.cut_log(run_dir / "log.jsonl", state["epoch"]))
    distributed.copy_from_first(trained)
    return state


def has_work_left(state: dict[str, Any], arguments: dict[str, Any]) -> bool:
    """Whether an epoch is under way, or epochs, patience and `max_iterations` all allow another one."""
    return state["under_way"] is not None or (
        state["epoch"] < arguments["epochs"] and state["epoch"] - state["best_epoch"] <= arguments["patience"]
        and state["iteration"] < (arguments["max_iterations"] or math.inf))


def train_one_epoch(trained: nn.Module, compute_losses: Callable[[Batch], dict[str, Tensor]],
                    optimizer: torch.optim.Optimizer, loader: DataLoader, state: dict[str, Any],
                    arguments: dict[str, Any], run_dir: Path, stop: StopRequest, save: Callable[[], None]
                    ) -> tuple[dict[str, float], float]:
    """The rest of an epoch, ended early at `max_iterations`: mean losses by key, and the seconds it took.

    Counts `state["iteration"]`, and keeps in `state["under_way"]` what a resumed run needs to go on from any step.
    Calls `save` every `checkpoint_minutes`, before it leaves on a stop request, and at the end.
    """
    device = next(trained.parameters()).device
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    epoch = state["epoch"] + 1
    progress = state["under_way"] = begin_epoch(loader, epoch, state["under_way"], arguments["seed"])
    trained.train()
    steps_between_reads = STEPS_BETWEEN_READS.get(device.type, 1)
    base_rate = arguments["lr"]
    if arguments["scale_lr"]:
        base_rate *= loader.batch_sampler.batch_size / PUBLISHED_BATCH
    first_step = loader.batch_sampler.first
    steps_left = min(len(loader) - first_step, max(0, (arguments["max_iterations"] or math.inf) - state["iteration"]))
    batches = iter(loader)
    unread: Unread = []
    last_read_at = saved_at = time.perf_counter()
    shown = bar(f"epoch {epoch}", loader, progress["frames"])
    for step in range(first_step, first_step + steps_left):
        with naming_dead_workers(loader):
            images, targets = next(batches)
        rate = learning_rate(base_rate, epoch, step, len(loader))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        losses = compute_gradients(compute_losses, to_device((images, targets), device), device, arguments)
        distributed.average_gradients(parameters)
        distributed.average_norm_statistics(trained)
        unread.append(({**losses, "gradient_norm": norm_of_gradients(parameters)}, targets))
        step_where_finite(optimizer, unread[-1][0])
        state["iteration"] += 1
        progress["frames"] += loader.batch_sampler.batch_size
        progress["steps"] += 1
        shown.update(len(images) * distributed.world_size())
        if len(unread) < steps_between_reads and state["iteration"] > 1 and step + 1 < first_step + steps_left:
            continue
        values, (stops, overdue) = settle(unread, state, [
            stop.signal > 0, time.perf_counter() - saved_at > 60 * arguments["checkpoint_minutes"]], arguments, run_dir)
        now = time.perf_counter()
        progress["seconds"] += now - last_read_at
        last_read_at = now
        unread = []
        # The first two are what a terminal of 80 columns has room for.
        shown.set_postfix({"lr": rate, "loss": sum(values.values()),
                           **{name.removeprefix("loss_"): value for name, value in values.items()}}, refresh=False)
        if stops or overdue:
            save()
            saved_at = now
        if stops:
            shown.close()
            stop.obey(f"after step {step + 1} of epoch {epoch}")
    shown.close()
    save()
    return {name: value / progress["steps"] for name, value in progress["sums"].items()}, progress["seconds"]


def settle(unread: Unread, state: dict[str, Any], requests: list[bool], arguments: dict[str, Any], run_dir: Path
           ) -> tuple[dict[str, float], list[bool]]:
    """Read back what the steps since the last time gave: add their losses to the epoch's sums, and note frames that
    could not be read. Returns the last step's losses, and which of the requests any process has.

    Raises `UserError` for a loss or gradient that is not finite, and for too many unreadable frames.
    """
    tensors, targets_by_step = zip(*unread, strict=True)
    targets = [target for batch in targets_by_step for target in batch]
    steps, (unreadable, *requested) = read_back(tensors, [sum("unreadable" in target for target in targets), *requests])
    refuse_non_finite(steps, targets_by_step, state["epoch"] + 1, state["iteration"], run_dir)
    if unreadable:
        note_unreadable(targets, state["skipped"], arguments["skip_bad"])
    sums = state["under_way"]["sums"]
    for values in steps:
        del values["gradient_norm"]
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    return steps[-1], [count > 0 for count in requested]


def compute_gradients(compute_losses: Callable[[Batch], dict[str, Tensor]], batch: Batch, device: torch.device,
                      arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Add a step's gradients to the parameters, `batch_size` frames at a time, each part by its share of the frames;
    return the mean losses, detached."""
    images, targets = batch
    size, means = arguments["batch_size"], {}
    for start in range(0, len(images), size):
        part = images[start : start + size], targets[start : start + size]
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments["amp"]):
            losses = compute_losses(part)
        share = len(part[0]) / len(images)
        (share * sum(losses.values())).backward()
        for name, value in losses.items():
            means[name] = means.get(name, 0.0) + share * value.detach()
    return means


def begin_epoch(loader: DataLoader, epoch: int, under_way: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """Set all random numbers and the frames' order for an epoch, or for the rest of one that is `under_way`; return
    the record of its progress.

    Other processes than before draw other random numbers, and go on after the last batch that was whole for them.
    """
    epoch_seed = seed_everything(seed, epoch)
    seed_everything(seed, epoch, distributed.rank())
    progress = {"frames": 0, "steps": 0, "sums": {}, "seconds": 0.0, "random_states": [], **(under_way or {})}
    if distributed.rank() < len(random_states := progress.pop("random_states")):
        checkpoint.set_random_states(random_states[distributed.rank()])
    loader.batch_sampler.begin(epoch_seed, progress["frames"])
    loader.dataset.seed_flips(epoch_seed)
    return progress


def step_where_finite(optimizer: torch.optim.Optimizer, values: dict[str, Tensor]) -> None:
    """The optimizer's step, or none where a value is NaN or infinite. Fused kernels see that for themselves on the
    device; for another optimizer the device is waited for."""
    finite = torch.stack(list(values.values())).isfinite().all()
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = 1 - finite.float()
        optimizer.step()
    elif finite:
        optimizer.step()


def norm_of_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar."""
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def read_back(steps: tuple[dict[str, Tensor], ...], counts: list[int]) -> tuple[list[dict[str, float]], list[float]]:
    """The mean of each value of each step over all processes, and the sum of each count.

    One transfer for all of them, and the only wait for the device that is ours.
    """
    names, values = list(steps[0]), torch.stack([torch.stack(list(step.values())).float() for step in steps])
    both = torch.cat([values.flatten(), torch.tensor(counts, device=values.device, dtype=torch.float32)])
    everywhere = distributed.total(both).tolist()
    means = [value / distributed.world_size() for value in everywhere]
    return ([dict(zip(names, means[start : start + len(names)], strict=True))
             for start in range(0, values.numel(), len(names))], everywhere[values.numel():])


def refuse_non_finite(steps: list[dict[str, float]], targets: tuple[list[dict[str, Any]], ...], epoch: int,
                      last_step: int, run_dir: Path) -> None:
    """Raise `UserError` for the first of the steps that end with number `last_step` where a loss or the gradient's norm
    is NaN or infinite; RUN_DIR/nonfinite.json has it all."""
    bad = next((place for place, values in enumerate(steps) if not all(map(math.isfinite, values.values()))), None)
    if bad is None:
        return
    frames = [name for part in distributed.gather([target["name"] for target in targets[bad]]) for name in part]
    step = last_step - len(steps) + bad + 1
    if distributed.rank() == 0:
        save_json({"epoch": epoch, "step": step, "frames": frames,
                   **{name: str(value) for name, value in steps[bad].items()}}, run_dir / "nonfinite.json")
    text = ", ".join(f"{name} {value:g}" for name, value in steps[bad].items())
    raise UserError(f"non-finite loss or gradient at epoch {epoch}, step {step}: {text}; frames {', '.join(frames)} "
                    f"({run_dir / 'nonfinite.json'}); the step was not taken and earlier checkpoints stand: lower "
                    "--lr, or look at these frames")


def note_unreadable(targets: list[dict[str, Any]], skipped: dict[str, str], allowed: int) -> None:
    """Add to `skipped`, name -> reason, and warn of, the frames of this step that could not be read; raise `UserError`
    where they are more than `--skip-bad`."""
    for part in distributed.gather([target.get("unreadable", {}) for target in targets]):
        found = {name: reason for unreadable in part for name, reason in unreadable.items() if name not in skipped}
        for name, reason in found.items():
            warn(f"skipped {name}: {reason}")
        skipped.update(found)
    if len(skipped) > allowed:
        raise UserError(f"{len(skipped)} frames cannot be read and --skip-bad allows {allowed}; the last: "
                        f"{list(skipped.values())[-1]}")


@torch.inference_mode()
def predict(model: nn.Module, loader: DataLoader, amp: bool = False, stop: StopRequest | None = None
            ) -> list[dict[str, Any]]:
    """Detections of every frame of the loader's list as COCO results, boxes in pixels of the stored images, by frame.

    Several processes share the work, and each gets all results. A `stop` request is heeded between batches.
    """
    device = next(model.parameters()).device
    model.eval()
    results, progress, batches = [], bar(loader.dataset.list_file.stem, loader), iter(loader)
    for _ in range(len(loader)):
        with naming_dead_workers(loader):
            images, targets = next(batches)
        images, _ = to_device((images, []), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            detections = model(images)
        results += to_coco_results(detections, targets)
        progress.update(len(images) * distributed.world_size())
        # Of several processes one must not leave the others waiting: they stop after the next step.
        if stop and stop.signal and distributed.world_size() == 1:
            progress.close()
            stop.obey("while validating")
    progress.close()
    everywhere = [result for part in distributed.gather(results) for result in part]
    return sorted(everywhere, key=lambda result: result["image_id"])


def score(loader: DataLoader, results: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's twelve numbers of the results on the loader's list, computed once where there are several processes."""
    return distributed.on_first(lambda: coco_metrics(loader.dataset.ground_truth(), results))


def report_teacher(teacher: nn.Module, loader: DataLoader, amp: bool = False) -> float:
    """Print and return the teacher's validation AP, and warn where there is little to imitate."""
    ap = score(loader, predict(teacher, loader, amp))["AP"]
    print(f"teacher: val AP {ap:.4f}")
    if not ap > 0.01:
        warn("a teacher with an AP near 0 has nothing to teach: check --teacher, --data, --val-list and the image size "
             "it was trained at")
    return ap


def bar(title: str, loader: DataLoader, frames_done: int = 0) -> tqdm:
    """A progress bar over a list's frames, in img/s; none where the output is a file or another process has one."""
    return tqdm(desc=title, initial=frames_done, total=len(loader.dataset), unit="img", leave=False, dynamic_ncols=True,
                disable=True if distributed.rank() else None)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move images, boxes and labels; what no detector trains on stays."""
    images, targets = batch
    return ([image.to(device, non_blocking=True) for image in images],
            [{**target, **{name: target[name].to(device, non_blocking=True) for name in ("boxes", "labels")}}
             for target in targets])
