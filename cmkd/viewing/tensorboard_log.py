"""What TensorBoard shows of each epoch (`--tensorboard`): losses, validation numbers, pictures."""

from pathlib import Path
from typing import Any

from torchvision.transforms.functional import pil_to_tensor

from cmkd.evaluation.metrics import Results
from cmkd.runtime.files import UserError
from cmkd.viewing.drawing import outcome_tile
from cmkd.viewing.outcomes import outcomes_by_frame
from dataset import SeeingThroughFog

FRAMES_SHOWN = 4
LEAST_SCORE = 0.5


def open_board(run_dir: Path, epochs_done: int) -> Any:
    """A SummaryWriter into RUN_DIR/tensorboard that hides epochs after `epochs_done`.

    Raises `UserError` if tensorboard is not installed, or the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs a package that is not installed: pip install tensorboard"
        ) from None
    folder = run_dir / "tensorboard"
    try:
        return SummaryWriter(folder, purge_step=epochs_done + 1)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): move it, or leave --tensorboard out"
        ) from None


def show_epoch(
    board: Any, record: dict[str, Any], dataset: SeeingThroughFog, results: Results
) -> None:
    """Show the numbers of an epoch's log record, and the first validation frames with a box.

    `results` are the COCO results of the validation list `dataset`.
    """
    epoch = record["epoch"]
    numbers = {f"losses/{name}": value for name, value in record["losses"].items()}
    numbers |= {f"val/{name}": value for name, value in record["val"].items()}
    numbers["lr"] = record["lr"]
    for name, value in numbers.items():
        if value is not None:
            board.add_scalar(name, value, epoch)
    ground_truth = dataset.ground_truth()
    outcomes, _ = outcomes_by_frame(ground_truth, results, LEAST_SCORE)
    people = [one for one in ground_truth["annotations"] if not one["iscrowd"]]
    with_box = sorted({person["image_id"] for person in people})
    for index in with_box[:FRAMES_SHOWN]:
        image, target = dataset[index]
        tile = outcome_tile(image[:3], outcomes[index])
        board.add_image(f"val/{target['name']}", pil_to_tensor(tile), epoch)
    board.flush()
