"""What of a graph a compiler's parser refuses: known in a fraction of a second, long before an engine is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gpusq_deploy.engines.api import BackendName, load_api
from gpusq_deploy.engines.build_log import BuildLog

if TYPE_CHECKING:
    import tensorrt as trt


class Unparsed(NamedTuple):
    """A node that the parser refuses, and its reason; both names are empty where it names no node."""

    node: str
    operator: str
    why: str


def unparsed(model: Path, backend: BackendName) -> tuple[Unparsed, ...]:
    """The nodes of an ONNX file that a backend can't parse; none where it can. Nothing is built.

    Raises:
        GpusqError: The backend isn't here.
    """
    api = load_api(backend)
    log = BuildLog()
    logger = log.as_logger(api)  # TensorRT keeps no reference of its own to it
    try:
        builder = api.Builder(logger)
    except (TypeError, RuntimeError):  # without a usable GPU, tensorrt can't start: it is told when it is to build
        return ()
    flag = api.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = api.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):
        return ()
    found = tuple(_told(parser.get_error(index)) for index in range(parser.num_errors))
    return found or (Unparsed("", "", "; ".join(log.errors()) or "it gave no reason"),)


def _told(error: trt.ParserError) -> Unparsed:
    return Unparsed(error.node_name(), error.node_operator(), reason_in(error.desc()))


def reason_in(description: str) -> str:
    """A parser's words without the C++ condition that failed; it says "false" of an operator that it doesn't know."""
    said = " ".join(description.split())
    quoted = said.split('"')[1::2]
    return "it doesn't know the operator" if said == "false" else " ".join(quoted).strip(" .") or said
