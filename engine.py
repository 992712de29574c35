"""The loop that is the same for every method: epochs, schedule, validation, best weights, early stop, resume.

It knows nothing of teachers, losses or discriminators: a train script passes `compute_losses(batch)`, whose values are
summed, minimised and logged by their keys.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluation import coco_metrics, finite, to_coco_results
from utils import (
    UserError,
    append_record,
    reason_of,
    refuse_unwritable,
    save_json,
    save_torch,
    seed_everything,
    versions,
)

Batch = tuple[list[Tensor], list[dict[str, Any]]]

WARM_UP_ITERATIONS, WARM_UP_START = 1000, 0.001
EPOCHS_PER_DECAY, DECAY = 5, 0.1
MAY_CHANGE_ON_RESUME = {"epochs", "patience", "max_iterations", "workers", "device", "resume", "data", "run_dir"}


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
    checkpoint. Everything trained must be in `optimizer`. `arguments` are the script's parsed options: `epochs`,
    `patience`, `seed`, `amp`, `resume` and `max_iterations` steer the loop, all are logged. `measure` is what is worth
    knowing before training and takes long: it is called once nothing speaks against the run, and adds to `settings`.
    Raises `UserError` for a run that is there already, settings that changed on resume, files that cannot be written,
    or a non-finite loss.
    """
    trained = nn.ModuleDict({"model": model, "also_trained": nn.Identity() if also_trained is None else also_trained})
    last_file, log_file = run_dir / "last.pth", run_dir / "log.jsonl"
    if not val_loader.dataset.has_boxes:
        raise UserError(f"{val_loader.dataset.list_file}: no frame has a box of the classes trained, so no validation "
                        "AP can be measured: name another --val-list or --classes")
    if arguments["resume"] and last_file.is_file():
        state = restore(last_file, trained, optimizer, arguments)
        print(f"going on after epoch {state['epoch']} of {last_file}; best AP {state['best_AP']:.4f}")
    else:
        # A run that stopped in its first epoch has a log and no state yet: it starts anew.
        if not (arguments["resume"] and log_file.is_file()):
            refuse_overwriting(run_dir, weights)
        state = {"epoch": 0, "iteration": 0, "best_AP": -1.0, "best_epoch": 0}
    refuse_unwritable(weights)
    refuse_unwritable(last_file)
    if not train_loader.dataset.has_boxes:
        print(f"warning: {train_loader.dataset.list_file}: no frame has a box of the classes trained: nothing will be "
              "learned but background", file=sys.stderr)
    if measure:
        settings = {**settings, **measure()}
    append_record(log_file, {"arguments": arguments, "settings": settings, "versions": versions(),
                             "start": time.strftime("%F %T")})

    while has_work_left(state, arguments):
        started = time.perf_counter()
        state["epoch"] += 1
        losses = train_one_epoch(trained, compute_losses, optimizer, train_loader, state, arguments)
        trained_at = time.perf_counter()
        metrics = evaluate(model, val_loader, arguments["amp"])
        if metrics["AP"] > state["best_AP"]:
            state.update(best_AP=metrics["AP"], best_epoch=state["epoch"])
            save_torch(model.state_dict(), weights)
            save_json({**settings, "epoch": state["epoch"], "val": finite(metrics), "arguments": arguments,
                       "versions": versions()}, weights.with_suffix(".json"))
        append_record(log_file, {
            **state, "losses": losses, "val": finite(metrics), "lr": optimizer.param_groups[0]["lr"],
            "train_seconds": trained_at - started, "val_seconds": time.perf_counter() - trained_at,
        })
        save_torch({"model": model.state_dict(), "also_trained": trained["also_trained"].state_dict(),
                    "optimizer": optimizer.state_dict(), "state": state, "arguments": comparable(arguments)}, last_file)
        print(f"epoch {state['epoch']}: loss {sum(losses.values()):.4f}  val AP {metrics['AP']:.4f}  "
              f"AP50 {metrics['AP50']:.4f}  best AP {state['best_AP']:.4f} (epoch {state['best_epoch']})")
    print(f"best AP {state['best_AP']:.4f} at epoch {state['best_epoch']}: {weights}; log: {log_file}")


def has_work_left(state: dict[str, Any], arguments: dict[str, Any]) -> bool:
    """Whether epochs, patience and `max_iterations` all allow another epoch."""
    return (state["epoch"] < arguments["epochs"] and state["epoch"] - state["best_epoch"] <= arguments["patience"]
            and state["iteration"] < (arguments["max_iterations"] or math.inf))


def train_one_epoch(trained: nn.Module, compute_losses: Callable[[Batch], dict[str, Tensor]],
                    optimizer: torch.optim.Optimizer, loader: DataLoader, state: dict[str, Any],
                    arguments: dict[str, Any]) -> dict[str, float]:
    """One pass over the frames, ended early at `max_iterations`; counts `state["iteration"]`; mean losses by key.

    Raises `UserError` for a non-finite loss, before the step is taken.
    """
    device = next(trained.parameters()).device
    epoch_seed = seed_everything(arguments["seed"], state["epoch"])
    loader.generator.manual_seed(epoch_seed)
    loader.dataset.seed_flips(epoch_seed)
    trained.train()
    first_iteration, sums = state["iteration"], {}
    progress = bar(f"epoch {state['epoch']}", loader)
    for step, (images, targets) in enumerate(loader):
        rate = learning_rate(arguments["lr"], state["epoch"], step, len(loader))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments["amp"]):
            losses = compute_losses(to_device((images, targets), device))
        total = sum(losses.values())
        # One transfer for all values, and the only wait for the device in the step: a step on a non-finite loss would
        # destroy the network, so it has to be known before.
        values = dict(zip(losses, torch.stack([loss.detach().float() for loss in losses.values()]).tolist(),
                          strict=True))
        refuse_non_finite(values, targets, state)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        state["iteration"] += 1
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        # The first two are what a terminal of 80 columns has room for.
        progress.set_postfix({"lr": rate, "loss": sum(values.values()),
                              **{name.removeprefix("loss_"): value for name, value in values.items()}}, refresh=False)
        progress.update(len(images))
        if state["iteration"] >= (arguments["max_iterations"] or math.inf):
            break
    progress.close()
    return {name: value / (state["iteration"] - first_iteration) for name, value in sums.items()}


def refuse_non_finite(losses: dict[str, float], targets: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Raise `UserError` that names the losses and frames of a batch whose loss is NaN or infinite."""
    if all(math.isfinite(value) for value in losses.values()):
        return
    raise UserError(f"non-finite loss at epoch {state['epoch']}, step {state['iteration'] + 1}: "
                    + ", ".join(f"{name} {value:g}" for name, value in losses.items())
                    + f"; frames {', '.join(target['name'] for target in targets)}; the step was not taken and earlier "
                    "checkpoints stand: lower --lr, or look at these frames")


@torch.inference_mode()
def predict(model: nn.Module, loader: DataLoader, amp: bool = False) -> list[dict[str, Any]]:
    """Detections of every frame of the loader as COCO results, boxes in pixels of the stored images."""
    device = next(model.parameters()).device
    model.eval()
    results, progress = [], bar(loader.dataset.list_file.stem, loader)
    for images, targets in loader:
        images, _ = to_device((images, []), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            detections = model(images)
        results += to_coco_results(detections, targets)
        progress.update(len(images))
    progress.close()
    return results


def evaluate(model: nn.Module, loader: DataLoader, amp: bool = False) -> dict[str, float]:
    """COCO's twelve numbers of a model on the loader's list."""
    return coco_metrics(loader.dataset.ground_truth(), predict(model, loader, amp))


def report_teacher(teacher: nn.Module, loader: DataLoader, amp: bool = False) -> float:
    """Print and return the teacher's validation AP, and warn where there is little to imitate."""
    ap = evaluate(teacher, loader, amp)["AP"]
    print(f"teacher: val AP {ap:.4f}")
    if not ap > 0.01:
        print("warning: a teacher with an AP near 0 has nothing to teach: check --teacher, --data, --val-list and the "
              "image size it was trained at", file=sys.stderr)
    return ap


def bar(title: str, loader: DataLoader) -> tqdm:
    """A progress bar over a loader's frames, in img/s; none where the output is a file."""
    return tqdm(desc=title, total=len(loader.dataset), unit="img", leave=False, dynamic_ncols=True, disable=None)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move images and the tensors of targets; names stay."""
    images, targets = batch
    return ([image.to(device, non_blocking=True) for image in images],
            [{name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
              for name, value in target.items()} for target in targets])


def restore(file: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, arguments: dict[str, Any]
            ) -> dict[str, Any]:
    """Load a training checkpoint into the networks and the optimizer; return the loop's state.

    Raises `UserError` for other settings, and for a file that is no training checkpoint of these networks.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        refuse_other_settings(file.parent, checkpoint["arguments"], comparable(arguments))
        for name in ("model", "also_trained"):
            trained[name].load_state_dict(checkpoint[name])
        optimizer.load_state_dict(checkpoint["optimizer"])
        return {name: checkpoint["state"][name] for name in ("epoch", "iteration", "best_AP", "best_epoch")}
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any of torch's, pickle's or zipfile's ways
        raise UserError(f"{file} is not a training checkpoint of this run ({reason_of(error)}): remove it to start "
                        "anew, or choose another --run-dir") from None


def refuse_other_settings(run_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `UserError` where a run would go on with other settings than it was started with."""
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(f"{run_dir} was started with {name} {before.get(name)}, not {value}: pass the same, or "
                            "start a new run with another --run-dir and --out")


def refuse_overwriting(run_dir: Path, weights: Path) -> None:
    """Raise `UserError` where a new run would destroy an old one."""
    for file in (run_dir / "log.jsonl", weights):
        if file.exists():
            raise UserError(f"{file} is there from an earlier run: pass --resume to go on with it, choose another "
                            "--run-dir and --out, or remove it")


def comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that decide a result, as plain values; a path is the same however it is written."""
    return json.loads(json.dumps({name: value.resolve() if isinstance(value, Path) else value
                                  for name, value in arguments.items() if name not in MAY_CHANGE_ON_RESUME},
                                 default=str))
