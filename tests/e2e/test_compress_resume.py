"""gpusq-compress is killed, runs out of disk and diverges, and goes on: nothing is lost, nothing is half written."""

from __future__ import annotations

import errno
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_folders import dark_and_light
from commands import Finished, run_main

from gpusq_deploy.cli.compress import main as compress
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint, save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of

KILLS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dark_and_light(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def drops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT that draws at each step: dropout and stochastic depth."""
    arguments = ("img_size=32", "embed_dim=64", "depth=2", "num_heads=1", "num_classes=2")
    arch = arch_from_text("timm:vit_tiny_patch16_224", (*arguments, "proj_drop_rate=0.1", "drop_path_rate=0.2"))
    torch.manual_seed(0)
    module = module_from_arch(arch)
    path = tmp_path_factory.mktemp("model") / "dense.pt"
    save_checkpoint(path, module, arch=arch, preprocessing=preprocessing_of(arch, module))
    return path


def run(model: Path, data: Path, out: Path, *options: object) -> Finished:
    return run_main(compress, model, "--data", data, "--out", out, *options)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found = load_checkpoint(path)
    ranges = {f"range of {layer}": torch.tensor(amax) for layer, amax in found.ranges.items()}
    return {**found.module.state_dict(), **ranges}


def same(left: Path, right: Path) -> bool:
    ours, theirs = tensors(left), tensors(right)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def require_two_four(content: dict[str, torch.Tensor]) -> None:
    for block in (0, 1):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            weight = content[f"blocks.{block}.{layer}.weight"]
            assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2


def kept_states(out: Path) -> Iterator[dict[str, Any]]:
    """The state dicts of every file of an interrupted run; each can be read."""
    place = out.with_name(f"{out.name}.resume")
    for path in sorted(place.glob("*.pt")):
        content = torch.load(path, weights_only=True)
        if path.stem == "training":
            yield content["state"]["student"]
            yield content["state"]["best"]["tensors"]
        elif path.stem == "result":
            yield content["state_dict"]
        else:
            yield content["student"]


def train(model: str, data: str, out: str, news: Connection) -> None:
    """In a process of its own: one run, that says when it trains and when it is over."""
    import gpusq_deploy

    torch.set_num_threads(1)
    told: list[int] = []

    def progress(_label: str, done: int, _total: int) -> None:
        if not told:
            news.send("trains")
        told.append(done)

    gpusq_deploy.compress(
        model,
        out=out,
        data=data,
        stage="prune,qat",
        epochs=(10, 10),
        batch_size=4,
        ema=0.9,
        resume=True,
        checkpoint_every="2",
        reporter=gpusq_deploy.Reporter(say=lambda _text: None, progress=progress),
    )
    news.send("done")


class Process:
    """One such run, forked from a server that has imported everything."""

    context = multiprocessing.get_context("forkserver")

    def __init__(self, model: Path, data: Path, out: Path) -> None:
        self.news, theirs = self.context.Pipe(duplex=False)
        self.began = time.monotonic()
        self.process = self.context.Process(target=train, args=(str(model), str(data), str(out), theirs))
        self.process.start()

    def hear(self, seconds: float) -> str | None:
        return str(self.news.recv()) if self.news.poll(seconds) else None

    def kill(self) -> None:
        """SIGKILL: nothing of the process's own runs after it."""
        self.process.kill()
        self.process.join()


@pytest.mark.slow
def test_killed_ten_times_it_ends_the_same_to_the_bit(drops: Path, folder: Path, tmp_path: Path) -> None:
    Process.context.set_forkserver_preload(["gpusq_deploy.sparsity", "torch", "timm", "PIL.Image"])
    whole, out = tmp_path / "whole.pt", tmp_path / "model.pt"
    first = Process(drops, folder, whole)
    assert first.hear(120) == "trains"
    trains = time.monotonic()
    assert first.hear(300) == "done"
    to_begin, to_train = trains - first.began, time.monotonic() - trains
    first.process.join()
    rng = np.random.default_rng(0)
    for kill in range(KILLS):
        process = Process(drops, folder, out)
        if kill % 3 == 0:  # at any moment from its start on
            process.hear(float(rng.uniform(0, 1.2 * to_begin)))
        else:  # while it trains, evaluates or writes; all of them together don't last to the end
            assert process.hear(120) == "trains"
            time.sleep(float(rng.uniform(0, to_train / KILLS)))
        process.kill()
        assert not out.exists()
        for content in kept_states(out):
            require_two_four(content)
    last = Process(drops, folder, out)
    assert last.hear(120) == "trains"
    assert last.hear(300) == "done"
    last.process.join()
    require_two_four(tensors(out))
    assert same(out, whole)
    assert sorted(tmp_path.iterdir()) == [out, whole]


def interrupted(model: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    """A run that ends after its second state, as one that was killed there."""
    from gpusq_deploy.sparsity.training.resume import StageKeeper

    saves, save = [0], StageKeeper.save

    def once(self: StageKeeper, state: Any) -> None:
        save(self, state)
        saves[0] += 1
        if saves[0] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageKeeper, "save", once)
        assert run(model, data, out, *options).code == 130
    assert not out.exists()


def test_it_goes_on_only_with_what_it_was_asked(
    drops: Path, dense: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "model.pt", tmp_path / "whole.pt"
    asked = ("--epochs", "4", "--batch-size", "6", "--permute")
    interrupted(drops, folder, out, monkeypatch, *asked)
    for model, data, options, words in (
        (drops, folder, asked, "an interrupted run left its state there"),
        (dense, folder, (*asked, "--resume"), "had another model; another teacher"),
        (drops, folder / "dark", (*asked, "--resume"), "had another data"),
        (drops, folder, (*asked, "--resume", "--recipe", "static_wf8_af8"), "had another recipe"),
        (drops, folder, (*asked, "--resume", "--batch-size", "5"), "had --batch-size 6, not 5"),
    ):
        done = run(model, data, out, *options)
        assert (done.code, words in done.err) == (5, True), done.err
        assert "Traceback" not in done.err
    done = run(drops, folder, out, *asked, "--resume")
    assert done.code == 0, done.err
    assert "goes on from the state" in done.err
    assert "epoch 2 of" not in done.err
    assert "epoch 3 of 4" in done.err
    assert run(drops, folder, whole, *asked, "--resume").code == 0
    assert same(out, whole)
    assert sorted(tmp_path.iterdir()) == [out, whole]


def test_force_begins_anew(drops: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model.pt"
    interrupted(drops, folder, out, monkeypatch, "--epochs", "4")
    done = run(drops, folder, out, "--epochs", "1", "--force")
    assert done.code == 0, done.err
    assert "epoch 1 of 1" in done.err
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("fits", [0, 1, 2, 4])
def test_a_full_disk_is_told_and_the_last_good_state_goes_on(
    drops: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    """Of the start, two epochs and the output so many files fit."""
    out, whole = tmp_path / "model.pt", tmp_path / "whole.pt"
    saves, save = [0], torch.save

    def until_full(content: Any, stream: Any) -> None:
        saves[0] += 1
        if saves[0] > fits:
            stream.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, stream)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", until_full)
        full = run(drops, folder, out, "--epochs", "2")
    assert full.code == (5 if fits < 4 else 0)
    if fits < 4:
        assert "the state of the run can't be written: No space left on device" in full.err
        assert "Traceback" not in full.err
        assert not out.exists()
        for content in kept_states(out):
            require_two_four(content)
        assert run(drops, folder, out, "--epochs", "2", "--resume").code == 0
    assert run(drops, folder, whole, "--epochs", "2").code == 0
    assert same(out, whole)


def test_a_divergence_names_step_and_layer_and_a_lower_rate_goes_on(
    drops: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpusq_deploy.sparsity.training.loop import Trainer

    out, update = tmp_path / "model.pt", Trainer._update  # pyright: ignore[reportPrivateUsage]
    steps = [0]

    def breaks(self: Trainer) -> None:
        update(self)
        steps[0] += 1
        if steps[0] == 5:
            with torch.no_grad():
                self.pair.student.get_parameter("blocks.1.mlp.fc1.bias").fill_(float("nan"))

    asked = ("--epochs", "3", "--batch-size", "6")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", breaks)
        done = run(drops, folder, out, *asked)
    assert done.code == 5
    assert "training diverged: the loss is nan, blocks.1.mlp.fc1.bias isn't finite" in done.err
    assert "epoch 2, step 3" in done.err
    assert "lower --lr" in done.err
    done = run(drops, folder, out, *asked, "--lr", "1e-4", "--resume")
    assert done.code == 0, done.err
    assert "epoch 2 of 3" in done.err
    require_two_four(tensors(out))


def test_what_isnt_trained_cant_be_resumed(drops: Path, folder: Path, tmp_path: Path) -> None:
    done = run(drops, folder, tmp_path / "model.pt", "--epochs", "0", "--resume")
    assert done.code == 5
    assert "only training can be resumed" in done.err


def test_its_own_output_is_trained_on_with_the_dense_file_as_teacher(drops: Path, folder: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first.pt", tmp_path / "second.pt"
    assert run(drops, folder, first, "--epochs", "1").code == 0
    done = run(first, folder, out, "--epochs", "2", "--teacher", drops, "--lr", "1e-5")
    assert done.code == 0, done.err
    before, after = load_checkpoint(first), load_checkpoint(out)
    assert before.sparsity is not None
    assert after.sparsity is not None
    assert after.sparsity.layers == before.sparsity.layers
    require_two_four(tensors(out))
    for layer in before.sparsity.layers:
        ours, theirs = (each.module.get_parameter(f"{layer}.weight") for each in (after, before))
        assert torch.equal(ours != 0, theirs != 0)
    assert not same(first, out)
    assert "feature term" not in done.err


def test_a_permuted_model_is_trained_on_without_the_feature_term(drops: Path, folder: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first.pt", tmp_path / "second.pt"
    assert run(drops, folder, first, "--epochs", "0", "--permute").code == 0
    done = run(first, folder, out, "--epochs", "1", "--teacher", drops)
    assert done.code == 0, done.err
    assert "distilling without the feature term (a model that was permuted" in done.err


def test_a_teacher_of_another_architecture_is_refused(drops: Path, dense: Path, folder: Path, tmp_path: Path) -> None:
    done = run(drops, folder, tmp_path / "o.pt", "--epochs", "1", "--teacher", dense)
    assert done.code == 5
    assert "the teacher can't be read as the model's architecture" in done.err
    done = run(drops, folder, tmp_path / "o.pt", "--epochs", "1", "--teacher", drops, "--permute")
    assert "leave out --permute" in done.err


@pytest.mark.parametrize(
    ("option", "value"), [("loss", (1, 2)), ("loss", (0, 0, 0)), ("loss", (1, -1, 1)), ("checkpoint_every", "often")]
)
def test_from_python_what_cant_be_is_refused(
    drops: Path, folder: Path, tmp_path: Path, option: str, value: Any
) -> None:
    import gpusq_deploy

    with pytest.raises(GpusqError):
        gpusq_deploy.compress(drops, out=tmp_path / "o.pt", data=folder, **{option: value})


@pytest.mark.slow
def test_torchrun_writes_once_and_what_one_process_writes(drops: Path, folder: Path, tmp_path: Path) -> None:
    """Without what is drawn, which each process draws for itself, and without INT8, whose steps are coarse."""
    still = tmp_path / "still.pt"
    found = load_checkpoint(drops)
    arch = arch_from_text(
        "timm:vit_tiny_patch16_224", ("img_size=32", "embed_dim=64", "depth=2", "num_heads=1", "num_classes=2")
    )
    save_checkpoint(still, found.module, arch=arch, preprocessing=found.preprocessing)
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    # AdamW's step is of one size however small a gradient is, which may be rounding alone.
    words = ("--data", str(folder), "--epochs", "2", "--batch-size", "6", "--optimizer", "sgd")
    assert run(still, folder, one, *words[2:]).code == 0
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gpusq_deploy", "compress")
    done = subprocess.run(
        [*command, str(still), *words, "--out", str(two)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out accuracy on") == 1
    assert done.stderr.count("epoch 1 of 2") == 1
    assert "Warning" not in done.stderr
    ours, theirs = tensors(two), tensors(one)
    require_two_four(ours)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-6)
    assert sorted(tmp_path.iterdir()) == [one, still, two]


@pytest.mark.slow
def test_what_doesnt_train_is_refused_in_several_processes(drops: Path, folder: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gpusq_deploy", "compress")
    words = (str(drops), "--data", str(folder), "--epochs", "0", "--out", str(tmp_path / "o.pt"))
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode != 0
    assert "only training runs in several processes, and here are 2" in done.stderr
    assert not list(tmp_path.iterdir())
