"""The cache of frames at training size: the same pixels, whatever is stored or damaged."""

import hashlib
import json
import os
import tempfile

import pytest
import torch
from conftest import label_line, train, write_frame
from PIL import Image

from cmkd.frames import cache
from cmkd.frames.cache import resize, training_size
from cmkd.runtime.files import UserError
from dataset import SeeingThroughFog, make_loader
from models import Detector


def cached(root, kind="disk", min_size=64, flip=False):
    dataset = SeeingThroughFog(root, "train_night", flip=flip)
    dataset.use_cache(kind, min_size, 1333)
    return dataset


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cached_frame_is_the_decoded_one_at_training_size(frames, kind):
    plain, kept = SeeingThroughFog(frames, "train_night"), cached(frames, kind)
    for _ in range(2):
        for index in range(len(plain)):
            image, target = kept[index]
            assert image.dtype == torch.uint8
            assert torch.equal(image, resize(plain[index][0], (64, 106)))
            expected = plain[index][1]["boxes"] * torch.tensor([106 / 160, 64 / 96] * 2)
            torch.testing.assert_close(target["boxes"], expected)
    kept.cache.remove()
    assert kept.cache.file.exists() == (kind == "disk")


def test_at_training_size_nothing_changes(frames):
    plain, kept = SeeingThroughFog(frames, "train_night"), cached(frames, min_size=96)
    for _ in range(2):
        assert all(torch.equal(kept[index][0], plain[index][0]) for index in range(2))


@pytest.mark.parametrize(
    ("height", "width", "min_size", "max_size"),
    [(768, 1280, 500, 1333), (96, 160, 64, 1333), (480, 640, 128, 1333), (720, 1280, 600, 1000)],
)
def test_the_resize_is_the_detectors_to_half_a_grey_level(height, width, min_size, max_size):
    transform = Detector(3, 2, "resnet18", min_size=min_size, max_size=max_size).train().transform
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    batch, _ = transform([image / 255])
    small = resize(image, training_size(height, width, min_size, max_size))
    again, _ = transform([small / 255])
    assert batch.image_sizes == again.image_sizes == [tuple(small.shape[-2:])]
    grey_levels = torch.tensor(transform.image_std)[:, None, None] * 255  # per normalised unit
    assert ((batch.tensors - again.tensors)[0] * grey_levels).abs().max() < 0.51


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_caches_work_without_linux(frames, tmp_path, monkeypatch, kind):
    """macOS has neither /dev/shm nor os.posix_fallocate."""
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(cache, "MEMORY_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    plain, kept = SeeingThroughFog(frames, "train_night"), cached(frames, kind, min_size=96)
    assert kept.cache.file.parent == (
        tmp_path / "temporary" if kind == "ram" else frames / ".cache"
    )
    assert all(torch.equal(kept[1][0], plain[1][0]) for _ in range(2))
    assert torch.equal(kept.cache.load(1), plain[1][0])


def test_after_the_first_pass_nothing_is_decoded(frames, monkeypatch):
    kept = cached(frames)
    for _ in make_loader(kept, 1, workers=2):
        pass
    monkeypatch.setattr(kept, "_decode", lambda index: pytest.fail("decoded again"))
    first = [image for image, _ in kept]
    again = cached(frames)
    monkeypatch.setattr(again, "_decode", lambda index: pytest.fail("decoded again"))
    assert all(torch.equal(one, image) for (one, _), image in zip(again, first, strict=True))


def test_a_damaged_frame_is_decoded_again(frames):
    kept = cached(frames)
    whole = [image.clone() for image, _ in kept]
    kept.cache.frames[1, 0, 5, 5] ^= 1
    assert kept.cache.load(1) is None
    assert torch.equal(kept[1][0], whole[1])
    assert torch.equal(kept.cache.load(1), whole[1])


def test_a_changed_file_or_size_is_another_cache(frames):
    kept = cached(frames)
    assert cached(frames).cache.file == kept.cache.file
    assert cached(frames, min_size=32).cache.file != kept.cache.file
    Image.new("RGB", (160, 96), "white").save(frames / "images/a.png")
    changed = cached(frames)
    assert changed.cache.file != kept.cache.file
    assert (changed[0][0][:3] == 255).all()


def test_the_key_is_of_resolved_paths(frames, tmp_path):
    """Links lead to the same cache as the files, so each path is resolved as a whole."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for item in frames.iterdir():
        (linked / item.name).symlink_to(item)
    plain = cached(frames)
    assert cached(linked).cache.file.name == plain.cache.file.name
    (frames / "gated1/b.png").rename(tmp_path / "elsewhere.png")
    (frames / "gated1/b.png").symlink_to(tmp_path / "elsewhere.png")
    content = hashlib.sha256(b"1 (64, 106)")
    for name in ("a", "b"):
        for folder in ("images", "gated0", "gated1", "gated2"):
            file = frames / folder / f"{name}.png"
            status = file.stat()
            content.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    assert (
        cached(frames).cache.file.name == f"frames-{os.getuid()}-{content.hexdigest()[:16]}.cache"
    )


def test_files_in_memory_that_no_process_uses_are_removed(frames, tmp_path, monkeypatch):
    """As SIGKILL leaves them; those of live runs stay."""
    monkeypatch.setattr(cache, "MEMORY_FOLDER", tmp_path)
    live, killed = (cached(frames, "ram", size).cache for size in (32, 48))
    files = live.file, killed.file
    del killed.frames, killed.checksums  # as the end of a process does
    cached(frames, "ram", 64)
    assert [file.exists() for file in files] == [True, False]


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """By another run that takes it for abandoned."""
    file, lock = tmp_path / "a", cache.fcntl.flock

    def lock_late(*given):
        if not removed:
            removed.append(file.unlink())
        lock(*given)

    removed = []
    monkeypatch.setattr(cache.fcntl, "flock", lock_late)
    with cache.open_in_use(file) as opened:
        assert os.path.samestat(os.fstat(opened.fileno()), file.stat())


def test_a_file_that_a_full_disk_cut_off_is_made_whole(frames):
    kept = cached(frames)
    image = kept[1][0]
    with kept.cache.file.open("r+b") as file:
        file.truncate(100)
    again = cached(frames)
    assert kept.cache.file == again.cache.file
    status = again.cache.file.stat()
    assert status.st_size == again.cache.bytes
    if hasattr(os, "posix_fallocate"):
        assert status.st_blocks * 512 >= status.st_size
    assert torch.equal(again[1][0], image)


def test_flips_follow_the_cache(frames):
    plain, kept = cached(frames), cached(frames, flip=True)
    for seed in range(4):
        kept.seed_flips(seed)
        image, mirrored = plain[0][0], kept[0][0]
        assert torch.equal(mirrored, image) or torch.equal(mirrored, image.flip(-1))


def test_what_cannot_be_kept(frames):
    with pytest.raises(UserError, match=r"--cache disk needs \d+.* GB more and .* has .* GB"):
        SeeingThroughFog(frames, "train_night").use_cache("disk", 1_000_000, 2_000_000)
    write_frame(frames, "c", (320, 192), label_line())
    (frames / "train_night.txt").write_text("a\nc\n")
    with pytest.raises(UserError, match="needs frames of one size, and .*train_night.txt has 2"):
        cached(frames)


def test_training_is_the_same_in_memory_and_on_disk(synthetic, tmp_path, copy_of):
    data = copy_of(synthetic)
    names = (data / "train_night.txt").read_text().splitlines()
    (data / "two.txt").write_text("\n".join(names[:2]))
    lists = "--train-list two --val-list two --epochs 2"
    weights = {}
    for kind, workers in (("ram", 0), ("disk", 2)):
        home = tmp_path / kind
        done = train("teacher", data, home, f"{lists} --cache {kind} --workers {workers}")
        assert f"--cache {kind}: 2 frames in 0.00 GB" in done.stdout
        weights[kind] = torch.load(home / "run/last.pth", weights_only=True)["model"]
        log = (home / "run/log.jsonl").read_text().splitlines()
        assert json.loads(log[0])["arguments"]["cache"] == kind
    assert all(torch.equal(weights["ram"][name], weights["disk"][name]) for name in weights["ram"])
    assert len(list((data / ".cache").iterdir())) == 1
