"""The Checkpoint value, and how it is loaded and saved."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import torch

from gpusq_deploy.artifacts import (
    ArchSpec,
    FileAccount,
    Preprocessing,
    SparsityRecord,
    builtins_from_value,
    digest_of_file,
    written_whole,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.account import account_of
from gpusq_deploy.frontend.checkpoint.adapters.exported_program import is_exported_program, read_exported_program
from gpusq_deploy.frontend.checkpoint.adapters.quantizer_record import QuantizerRecord
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.adapters.registry import reading_of, require_readable
from gpusq_deploy.frontend.checkpoint.architecture import module_from_arch, skeleton_from_arch, text_from_arch
from gpusq_deploy.frontend.checkpoint.files import (
    SELF_DESCRIBING,
    CodeRefusedError,
    read_checkpoint_file,
    require_no_choice,
    run_checkpoint_file,
    state_dict_in,
    write_torch,
)
from gpusq_deploy.frontend.checkpoint.input_factors import with_factors
from gpusq_deploy.frontend.checkpoint.input_shape import require_one_input
from gpusq_deploy.frontend.checkpoint.layer_names import layer_of, weighted_layers
from gpusq_deploy.frontend.checkpoint.naming import named_for
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.pretrained_folder import CONFIG, saved_folder, weights_file
from gpusq_deploy.frontend.checkpoint.remarks import assumed, eight_bit_floats
from gpusq_deploy.frontend.checkpoint.state_dict_fit import require_finite, require_fit, require_plain
from gpusq_deploy.frontend.checkpoint.transformers_input import UndeclaredError, as_stored
from gpusq_deploy.frontend.checkpoint.wrappers import plain_name
from gpusq_deploy.text import some

PRODUCT = "gpusq-deploy"
# For rooms that name the type and don't import torch.
TorchModule = torch.nn.Module


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenGraph:
    """The float graph of an ONNX file; `half`: the file computes in half precision, and rounds so."""

    model: ir.Model
    half: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model with its weights (float32, eval mode, CPU) and everything its file said about it.

    `ranges` holds recorded input amax by layer name, `origins` who recorded them; `sparsity` the layers that were
    pruned, if the file says so; `remarks` what was changed or left out while reading; `quantizers` what else
    its producer recorded of quantisers. `given` is the graph of an ONNX file, whose `module` runs that file; None: the
    module is exported.
    """

    file: str
    digest: str
    format: str
    arch: ArchSpec
    module: torch.nn.Module
    preprocessing: Preprocessing
    sparsity: SparsityRecord | None = None
    ranges: Mapping[str, float] = field(default_factory=dict[str, float])
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    remarks: tuple[str, ...] = ()
    quantizers: QuantizerRecord = field(default_factory=QuantizerRecord)
    given: GivenGraph | None = None

    @property
    def runner(self) -> str:
        """Who answers for the model as it was given: what its float graph is compared with."""
        return "torch" if self.given is None else "the file on ONNX Runtime"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeights:
    """A model's weights where they lie in its file, and a module that says what they are; its own mean nothing.

    `preprocessing` is None where the architecture declares none; `remarks` are those of `Checkpoint`;
    `account` says what of the file is read.
    """

    skeleton: torch.nn.Module
    state: Mapping[str, torch.Tensor]
    sparsity: SparsityRecord | None
    preprocessing: Preprocessing | None
    remarks: tuple[str, ...] = ()
    account: FileAccount | None = None


def load_checkpoint(
    path: Path,
    *,
    arch: ArchSpec | None = None,
    allow_pickle: bool = False,
    state_dict: str | None = None,
    undeclared: Callable[[], Preprocessing | None] = lambda: None,
    keep_factors: bool = False,
) -> Checkpoint:
    """Load a checkpoint: self-describing, a state dict, safetensors or an exported program. Nothing in it is executed.

    Args:
        path: The checkpoint; also a folder that transformers' save_pretrained wrote.
        arch: Its architecture; None where the file, or the config.json beside it, describes it. A factory is code:
            it is named here too, however the file describes itself.
        allow_pickle: Run code that the file names, where it can't be read otherwise; a remark says when that was done.
        state_dict: Which of the file's state dicts, where it holds several; see `state_dict_in`.
        undeclared: What is known of the input of an architecture that declares no preprocessing; None: nothing.
        keep_factors: Multiply inputs by the factors that SmoothQuant or AWQ recorded, as the producer ran the model;
            else the weights are multiplied by them, which is the same in floating point, and their ranges are left out.

    Raises:
        GpusqError: A bad file, no architecture, weights that don't fit it, or weights that aren't finite.
    """

    def content_of(file: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        return _content(file, allow_pickle=allow_pickle)

    read = _read(path, arch, content_of, state_dict)
    place = str(read.file)
    module, reading = _module_with_weights(read, place=place)
    reading = with_factors(module, reading, keep=keep_factors)
    preprocessing, remarks = read.preprocessing, reading.remarks
    if preprocessing is None:
        preprocessing, lacking = _declared(read, module, undeclared)
        remarks = (
            *remarks,
            *eight_bit_floats(reading.state),
            *lacking,
            *assumed(read.arch, preprocessing, read.preprocessor),
        )
    return Checkpoint(
        file=read.file.name,
        digest=digest_of_file(read.file),
        format="safetensors" if read.file.suffix == ".safetensors" else reading.layout,
        arch=read.arch,
        module=module,
        preprocessing=preprocessing,
        sparsity=reading.sparsity,
        ranges=reading.ranges if read.described is None else _ranges(read.described, place),
        origins=reading.origins,
        remarks=remarks,
        quantizers=reading.quantizers if read.described is None else _floats(read.described, place),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """A checkpoint's file, before there is a module.

    Attributes:
        file: The file with the weights.
        arch: What they are of.
        reading: The weights under the file's names, and what is recorded of them.
        preprocessing: Of a file that describes itself; None: it is the architecture's, or as `preprocessor` says.
        preprocessor: What preprocessor_config.json holds.
        described: The content of a file that describes itself.
        again: Reads the file with some of its names left as they are; None where no adapter took any.
    """

    file: Path
    arch: ArchSpec
    reading: Reading
    preprocessing: Preprocessing | None = None
    preprocessor: Mapping[str, Any] | None = None
    described: Mapping[str, Any] | None = None
    again: Callable[[Collection[str]], Reading] | None = None


def _read(
    path: Path,
    arch: ArchSpec | None,
    content_of: Callable[[Path], tuple[Mapping[str, Any], tuple[str, ...]]],
    state_dict: str | None,
) -> _Read:
    """Everything that the file, and a config beside it, say; `content_of` gives the file's content and remarks."""
    # A folder is its config first: what it lacks is told before what its weights lack.
    named = _named(path, arch) if os.path.isdir(path) else None
    file = weights_file(path)
    place = str(file)
    if is_exported_program(file):
        require_no_choice(state_dict, place=place)
        again, reading = None, read_exported_program(file)
    else:
        content, remarks = content_of(file)
        if content.get("format") == SELF_DESCRIBING:
            require_no_choice(state_dict, place=place)
            return _read_self_describing(file, content, arch, remarks)
        again = partial(_reading_of, content, remarks, place, state_dict)
        reading = again(())
    arch, preprocessor = named or _named(path, arch)
    if arch is None:
        require_readable(reading)
    require_plain(reading.state, place=place)
    arch = as_stored(_known(arch, file), reading.state)
    return _Read(file=file, arch=arch, reading=reading, preprocessor=preprocessor, again=again)


def _reading_of(
    content: Mapping[str, Any], remarks: tuple[str, ...], place: str, key: str | None, keep: Collection[str]
) -> Reading:
    reading = reading_of(content, place=place, key=key, keep=keep)
    return replace(reading, remarks=(*remarks, *reading.remarks))


def _read_self_describing(
    file: Path, content: Mapping[str, Any], asked: ArchSpec | None, remarks: tuple[str, ...]
) -> _Read:
    place = str(file)
    arch = _described(content, asked, place)
    state, _ = state_dict_in(_field(content, "state_dict", dict[str, Any], place), place=place)
    require_plain(state, place=place)
    sparsity = _field(content, "sparsity", SparsityRecord | None, place)
    return _Read(
        file=file,
        arch=arch,
        reading=Reading(state=state, layout=SELF_DESCRIBING, sparsity=sparsity, remarks=remarks, producers=(PRODUCT,)),
        preprocessing=_field(content, "preprocessing", Preprocessing, place),
        described=content,
    )


def _named(path: Path, asked: ArchSpec | None) -> tuple[ArchSpec | None, Mapping[str, Any] | None]:
    """The architecture of weights that don't describe themselves, and its preprocessing, as far as a config says them.

    What lies beside a file is of another model where it names another class than was asked for.
    """
    saved = saved_folder(path) if asked is None or asked.source == "transformers" else None
    if saved is None or (asked is not None and not os.path.isdir(path) and saved.arch.name != asked.name):
        return asked, None
    return _with_config(asked, saved.arch), saved.preprocessor


def _with_config(asked: ArchSpec | None, saved: ArchSpec) -> ArchSpec:
    """What was asked for, with the saved config where none is named."""
    if asked is None:
        return saved
    return ArchSpec(source=asked.source, name=asked.name, arguments={**saved.arguments, **asked.arguments})


def stored_weights(
    path: Path,
    *,
    arch: ArchSpec | None = None,
    state_dict: str | None = None,
    content: Mapping[str, Any] | None = None,
) -> StoredWeights:
    """The same checkpoint, its weights mapped where the file can be, in the types that they are stored in.

    Nobody has read them yet: whether they are finite is for `require_finite`.

    Args:
        path: As for `load_checkpoint`.
        arch: As for `load_checkpoint`.
        state_dict: As for `load_checkpoint`.
        content: What the file holds, where it has been read already.

    Raises:
        GpusqError: See `load_checkpoint`.
    """

    def content_of(file: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        return (read_checkpoint_file(file) if content is None else content), ()

    read = _read(path, arch, content_of, state_dict)
    skeleton, preprocessing = skeleton_from_arch(read.arch), read.preprocessing
    reading = _reading_for(read, skeleton)
    require_fit(skeleton.state_dict(), reading.state, read.arch, place=str(read.file))
    if preprocessing is None:
        # Weights can be looked at without it.
        with suppress(GpusqError):
            preprocessing = preprocessing_of(read.arch, skeleton, read.preprocessor)
    return StoredWeights(
        skeleton=skeleton,
        state=reading.state,
        sparsity=reading.sparsity,
        preprocessing=preprocessing,
        remarks=reading.remarks,
        account=account_of(read.file, reading),
    )


def _known(arch: ArchSpec | None, path: Path) -> ArchSpec:
    if arch is None:
        beside = f"; the {CONFIG} beside it names no class of transformers" if (path.parent / CONFIG).is_file() else ""
        raise GpusqError(
            "the file holds weights but doesn't say of which architecture",
            place=str(path),
            hint=f"add --arch, such as --arch timm:vit_small_patch16_224{beside}",
        )
    return arch


def _content(path: Path, *, allow_pickle: bool) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    try:
        return read_checkpoint_file(path), ()
    except CodeRefusedError as error:
        if not allow_pickle:
            raise
        return run_checkpoint_file(path), (f"WARNING: --allow-pickle: code that the file names was run ({error.what})",)


def save_checkpoint(  # noqa: PLR0913 - the fields of the file
    path: Path,
    module: torch.nn.Module,
    *,
    arch: ArchSpec,
    preprocessing: Preprocessing,
    sparsity: SparsityRecord | None = None,
    ranges: Mapping[str, float] | None = None,
    floats: Mapping[str, str] | None = None,
) -> None:
    """Write a self-describing checkpoint, whole or not at all. It loads with `torch.load(weights_only=True)`.

    `floats` are layers that were trained in floating point among others in INT8, each with the reason.

    Raises:
        OSError: The disk refused.
    """
    content = {
        "format": SELF_DESCRIBING,
        "arch": builtins_from_value(arch),
        "preprocessing": builtins_from_value(preprocessing),
        "sparsity": None if sparsity is None else builtins_from_value(sparsity),
        "ranges": dict(ranges or {}),
        **({"floats": dict(floats)} if floats else {}),
        "state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        write_torch(temporary, content)


def _described(content: Mapping[str, Any], asked: ArchSpec | None, place: str) -> ArchSpec:
    """The architecture that a file says it is of. A factory is code: it must be asked for.

    Raises:
        GpusqError: Another one was asked for, or none where it must be.
    """
    arch: ArchSpec = _field(content, "arch", ArchSpec, place)
    code = arch.source == "factory"
    if asked is not None and asked != arch:
        hint = f"give what it says: {text_from_arch(arch)}" if code else "leave out --arch"
        raise GpusqError(f"the file says it is {arch}, but {asked} was asked for", place=place, hint=hint)
    if code and asked is None:
        raise GpusqError(
            f"the file names a factory, {arch.name}, which is code, and a file's word alone runs none",
            place=place,
            hint=f"where you trust it, name it too: {text_from_arch(arch)}",
        )
    return arch


def _field(content: Mapping[str, Any], name: str, kind: Any, place: str) -> Any:
    try:
        return msgspec.convert(content[name], type=kind)
    except (KeyError, msgspec.ValidationError) as error:
        reason = "it is missing" if isinstance(error, KeyError) else str(error)
        raise GpusqError(
            f"the checkpoint's {name} can't be read: {reason}", place=place, hint="make it again with gpusq-compress"
        ) from error


def _floats(content: Mapping[str, Any], place: str) -> QuantizerRecord:
    """The layers that were trained in floating point, each with the reason; older files have no such field."""
    return QuantizerRecord(floats=_field({"floats": {}, **content}, "floats", dict[str, str], place))


def _ranges(content: Mapping[str, Any], place: str) -> dict[str, float]:
    ranges: dict[str, float] = _field(content, "ranges", dict[str, float], place)
    bad = [name for name, amax in ranges.items() if not (math.isfinite(amax) and amax >= 0)]
    if bad:
        raise GpusqError(
            f"a recorded range is negative or not finite: {ranges[bad[0]]}",
            place=f"{place}, layer {bad[0]}",
            hint="make the checkpoint again with gpusq-compress",
        )
    return ranges


def _reading_for(read: _Read, module: torch.nn.Module) -> Reading:
    """What was read, under the module's names; a file that describes itself has them.

    Raises:
        GpusqError: The weights are of a form that can't be read, or see `named_for`.
    """
    if read.described is not None:
        return read.reading
    expected, reading = module.state_dict(), read.reading
    own = set(_own(reading.taken, expected)) if reading.taken else set[str]()
    if own and read.again is not None:
        reading = read.again(own)
    require_readable(reading)
    return _recorded_layers(named_for(read.arch, reading, expected, place=str(read.file)), module)


def _own(names: Collection[str], expected: Collection[str]) -> Iterator[str]:
    """Names of the file that the architecture has, whatever they stand under: its layers compute with them."""
    wanted = {plain_name(name) for name in expected}
    for name in names:
        parts = name.split(".")
        if name in wanted or any(".".join(parts[at:]) in wanted for at in range(1, len(parts) - 1)):
            yield name


def _recorded_layers(reading: Reading, module: torch.nn.Module) -> Reading:
    """The reading with a record of Linear and Conv2d layers alone: of others nobody can ask 2:4."""
    record = reading.sparsity
    if record is None:
        return reading
    known = {layer_of(name) for name, _ in weighted_layers(module)}
    others = [layer for layer in record.layers if layer not in known]
    if not others:
        return reading
    kept = tuple(layer for layer in record.layers if layer in known)
    said = f"{record.method}'s 2:4 is applied, and not asked of what is no Linear or Conv2d layer: {some(others)}"
    sparsity = msgspec.structs.replace(record, layers=kept) if kept else None
    return replace(reading, sparsity=sparsity, remarks=(*reading.remarks, said))


def _module_with_weights(read: _Read, *, place: str) -> tuple[torch.nn.Module, Reading]:
    if read.arch.source == "transformers":  # the library may build the model to rename weights: never two at a time
        require_one_input(read.arch, skeleton := skeleton_from_arch(read.arch))
        reading = _reading_for(read, skeleton)
        module = module_from_arch(read.arch)
    else:
        require_one_input(read.arch, module := module_from_arch(read.arch))
        reading = _reading_for(read, module)
    state = reading.state
    # Shapes first: a few stored bytes can claim to be any number of weights, and what follows looks at each.
    expected = module.state_dict()
    require_fit(expected, state, read.arch, place=place)
    # What the file holds in the module's own types stays mapped; the initial weights go before anybody reads it.
    fitting = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    del expected
    module.load_state_dict(fitting, assign=True)
    require_finite(state, place=place)
    return module.requires_grad_(requires_grad=False), reading


def _declared(
    read: _Read, module: torch.nn.Module, undeclared: Callable[[], Preprocessing | None]
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing, and a remark where it is none."""
    try:
        return preprocessing_of(read.arch, module, read.preprocessor), ()
    except UndeclaredError as error:
        known = undeclared()
        if known is None:
            raise
        shape = " x ".join(map(str, known.sample_shape))
        return known, (f"{error.what}: the input is taken to be {shape}, as the prepared arrays are",)
