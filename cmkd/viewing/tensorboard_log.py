"""What TensorBoard shows of a run (`--tensorboard`): losses, validation numbers and pictures of each epoch."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from cmkd.viewing.drawing import outcome_tile
from cmkd.viewing.outcomes import outcomes
from utils import UserError

PICTURES, LEAST_SCORE = 4, 0.5


def open_board(run_dir: Path, epochs_done: int) -> Any:
    """A SummaryWriter into RUN_DIR/tensorboard, in which later epochs of an earlier start are no longer shown. Raises
    `UserError` where tensorboard is not installed, or the folder cannot be written."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs a package that is not installed: pip install tensorboard") from None
    folder = run_dir / "tensorboard"
    try:
        return SummaryWriter(folder, purge_step=epochs_done + 1)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): move it, or leave --tensorboard out") from None


def show_epoch(board: Any, record: dict[str, Any], dataset: Dataset, truth: dict[str, list],
               results: list[dict[str, Any]]) -> None:
    """The numbers of an epoch's record in the log, and the first validation frames with a box: what was found there
    (COCO results) and what not."""
    epoch = record["epoch"]
    for name, value in [*((f"losses/{name}", value) for name, value in record["losses"].items()),
                        *((f"val/{name}", value) for name, value in record["val"].items()), ("lr", record["lr"])]:
        if value is not None:
            board.add_scalar(name, value, epoch)
    frames, _ = outcomes(truth, results, LEAST_SCORE)
    with_box = sorted({one["image_id"] for one in truth["annotations"] if not one["iscrowd"]})
    for place in with_box[:PICTURES]:
        image, target = dataset[place]
        board.add_image(f"val/{target['name']}", pil_to_tensor(outcome_tile(image[:3], frames[place])), epoch)
    board.flush()
