"""The checkpoint, its teacher, and what is pruned and trained in INT8."""

from __future__ import annotations

from gpusq_deploy.artifacts import (
    builtins_from_value,
    digest_of_bytes,
    json_from_value,
    load_recipe,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    Checkpoint,
    load_checkpoint,
)
from gpusq_deploy.sparsity.compressing.refusals import (
    require_classifier,
    require_dense_model,
    require_one_process,
    require_place,
    require_stage,
)
from gpusq_deploy.sparsity.compressing.request import CompressRequest
from gpusq_deploy.sparsity.compressing.run import Opened
from gpusq_deploy.sparsity.pruning.magnitude import (
    prunable_layers,
    recorded_choice,
)
from gpusq_deploy.sparsity.training.distributed import Ranks
from gpusq_deploy.sparsity.training.fingerprint import digest_of_data, digest_of_tensors
from gpusq_deploy.sparsity.training.qat import (
    int8_layers,
)
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.sharding import require_shardable

_TEACHER = "give the dense checkpoint that the model was made from"


def open_request(request: CompressRequest, processes: Ranks) -> Opened:
    """What the request names: refused before anything is trained."""
    require_one_process(request, processes)
    require_place(request)
    require_stage(request)
    recipe = load_recipe(request.recipe)
    checkpoint = load_checkpoint(request.model, arch=request.arch, state_dict=request.state_dict)
    teacher = _teacher(checkpoint, request)
    require_dense_model(checkpoint, request, recipe)
    require_classifier(checkpoint, request)
    if request.training.fsdp:
        require_shardable(checkpoint.module)
    wanted = request.qat_epochs is not None or request.stage == "reconstruct,int8"
    int8 = int8_layers(checkpoint.module, recipe) if wanted else None
    if checkpoint.sparsity is None:
        choice = prunable_layers(checkpoint.module, recipe, request.dense, convolutions=request.convolutions)
    else:
        choice = recorded_choice(checkpoint.module, checkpoint.sparsity.layers)
    return Opened(checkpoint, teacher, choice, int8, recipe)


def _teacher(checkpoint: Checkpoint, request: CompressRequest) -> Checkpoint:
    """Who teaches: the model itself as it is, or another checkpoint of it."""
    if request.teacher is None:
        return checkpoint
    if request.permute:
        raise GpusqError(
            "permuted, the student's channels are in another order than the teacher's, and features can't be compared",
            place="--teacher",
            hint="leave out --permute",
        )
    try:
        teacher = load_checkpoint(request.teacher, arch=request.arch or checkpoint.arch)
    except GpusqError as error:
        raise GpusqError(
            f"the teacher can't be read as the model's architecture: {error.what}",
            place=str(request.teacher),
            hint=_TEACHER,
        ) from error
    shapes, others = (
        {name: tuple(tensor.shape) for name, tensor in each.module.state_dict().items()}
        for each in (checkpoint, teacher)
    )
    other = next((name for name in {**shapes, **others} if shapes.get(name) != others.get(name)), None)
    if other is not None:
        raise GpusqError(
            f"the teacher isn't of the model's architecture: its {other} is {others.get(other, 'missing')}, the "
            f"model's {shapes.get(other, 'missing')}",
            place=str(request.teacher),
            hint=_TEACHER,
        )
    return teacher


def fingerprint(request: CompressRequest, opened: Opened, data: TrainingData) -> dict[str, str]:
    """What decides the result, but for the learning rate: after a divergence a run goes on with another one."""
    training = builtins_from_value(request.training)
    asked = {
        "--stage": request.stage,
        "--method": request.method,
        "--prune-images": request.prune_images,
        "--permute": request.permute,
        "--dense": list(request.dense),
        "--convolutions": request.convolutions,
        "--held-out": request.data.split.held_out,
        "--annotations": request.data.annotations,
        "--reduce-labels": request.data.reduce_labels,
        "--augment": request.data.augment,
        "--mixup": request.data.mixup,
        "--cutmix": request.data.cutmix,
        "--epochs": [training.pop("epochs"), request.qat_epochs],
        "--loss": [training.pop(name) for name in ("alpha", "beta", "gamma")],
    }
    del training["learning_rate"]
    asked |= {f"--{name.replace('_', '-')}": value for name, value in training.items()}
    model, own = digest_of_tensors(opened.checkpoint.module.state_dict()), opened.teacher is opened.checkpoint
    return {
        "model": model,
        "teacher": model if own else digest_of_tensors(opened.teacher.module.state_dict()),
        "data": digest_of_data(data),
        "recipe": digest_of_bytes(json_from_value(opened.recipe)),
        **{name: str(value) for name, value in asked.items()},
    }
