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
from utils import UserError, append_record, save_json, save_torch, seed_everything, versions

Batch = tuple[list[Tensor], list[dict[str, Any]]]

WARM_UP_ITERATIONS, WARM_UP_START = 1000, 0.001
EPOCHS_PER_DECAY, DECAY = 5, 0.1
MAY_CHANGE_ON_RESUME = {"epochs", "patience", "max_iterations", "workers", "device", "resume", "data", "run_dir"}


def learning_rate(base: float, iteration: int, iterations_per_epoch: int) -> float:
    """The published schedule: linear warm-up from base/1000 over min(1000, iterations - 1) steps of the first epoch,
    then a tenth after every 5 epochs. A function of the step alone, so there is no state to save."""
    warm_up = min(WARM_UP_ITERATIONS, iterations_per_epoch - 1)
    if iteration < warm_up:
        return base * (WARM_UP_START + (1 - WARM_UP_START) * iteration / warm_up)
    return base * DECAY ** (iteration // iterations_per_epoch // EPOCHS_PER_DECAY)


def fit(model: nn.Module, compute_losses: Callable[[Batch], dict[str, Tensor]], optimizer: torch.optim.Optimizer,
        train_loader: DataLoader, val_loader: DataLoader, *, weights: Path, run_dir: Path, settings: dict[str, Any],
        arguments: dict[str, Any], also_trained: nn.Module | None = None) -> None:
    """Train `model` until the epochs are done or the validation AP stops rising.

    `model` is what is validated and whose best state_dict goes to `weights`, with `settings` (what evaluation needs to
    know) and `arguments` as JSON beside it. `also_trained` (discriminators) is trained along and kept in the training
    checkpoint. Everything trained must be in `optimizer`. `arguments` are the script's parsed options: `epochs`,
    `patience`, `seed`, `amp`, `resume` and `max_iterations` steer the loop, all are logged.
    Raises `UserError` for a run that is there already, settings that changed on resume, or a non-finite loss.
    """
    trained = nn.ModuleDict({"model": model, "also_trained": also_trained or nn.Identity()})
    last_file, log_file = run_dir / "last.pth", run_dir / "log.jsonl"
    if not val_loader.dataset.ground_truth()["annotations"]:
        raise UserError(f"{val_loader.dataset.list_file}: no frame has a box of the classes trained, so no validation "
                        "AP can be measured: name another --val-list or --classes")
    if arguments["resume"] and last_file.is_file():
        state = restore(last_file, trained, optimizer, arguments)
        print(f"going on after epoch {state['epoch']} of {last_file}; best AP {state['best_AP']:.4f}")
    else:
        refuse_overwriting(run_dir, weights)
        run_dir.mkdir(parents=True, exist_ok=True)
        state = {"epoch": 0, "iteration": 0, "best_AP": -1.0, "best_epoch": 0}
    append_record(log_file, {"arguments": arguments, "settings": settings, "versions": versions(),
                             "start": time.strftime("%F %T")})

    while state["epoch"] < arguments["epochs"] and state["epoch"] - state["best_epoch"] <= arguments["patience"]:
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
        if state["iteration"] == arguments["max_iterations"]:
            break
    print(f"best AP {state['best_AP']:.4f} at epoch {state['best_epoch']}: {weights}; log: {log_file}")


def train_one_epoch(trained: nn.Module, compute_losses: Callable[[Batch], dict[str, Tensor]],
                    optimizer: torch.optim.Optimizer, loader: DataLoader, state: dict[str, Any],
                    arguments: dict[str, Any]) -> dict[str, float]:
    """One pass over the frames, ended early at `max_iterations`; counts `state["iteration"]`; mean losses by key.

    Raises `UserError` for a non-finite loss, before the step is taken.
    """
    device = next(trained.parameters()).device
    epoch_seed = seed_everything(arguments["seed"], state["epoch"])
    loader.generator.manual_seed(epoch_seed)
    loader.dataset.set_epoch(epoch_seed)
    trained.train()
    first_iteration, sums = state["iteration"], {}
    progress = bar(f"epoch {state['epoch']}", loader)
    for images, targets in loader:
        rate = learning_rate(arguments["lr"], state["iteration"], len(loader))
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
        progress.set_postfix({**values, "lr": rate}, refresh=False)
        progress.update(len(images))
        if state["iteration"] == arguments["max_iterations"]:
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
    """Load a training checkpoint into the networks and the optimizer; return the loop's state."""
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    for name, value in comparable(arguments).items():
        if (before := checkpoint["arguments"].get(name)) != value:
            raise UserError(f"{file.parent} was started with {name} {before}, not {value}: pass the same, or start a "
                            "new run with another --run-dir and --out")
    for name in ("model", "also_trained"):
        trained[name].load_state_dict(checkpoint[name])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["state"]


def refuse_overwriting(run_dir: Path, weights: Path) -> None:
    """Raise `UserError` where a new run would destroy an old one."""
    for file in (run_dir / "log.jsonl", weights):
        if file.exists():
            raise UserError(f"{file} is there from an earlier run: pass --resume to go on with it, choose another "
                            "--run-dir and --out, or remove it")


def comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that decide a result, as plain values."""
    return json.loads(json.dumps({name: value for name, value in arguments.items()
                                  if name not in MAY_CHANGE_ON_RESUME}, default=str))
