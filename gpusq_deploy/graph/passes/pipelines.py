"""The passes that every float graph goes through, in order."""

from __future__ import annotations

from gpusq_deploy.graph.passes.base import Pass
from gpusq_deploy.graph.passes.registry import PIPELINES, make_pass

# The form of a float graph that everything after relies on.
SIMPLE: tuple[Pass, ...] = tuple(make_pass(name) for name in PIPELINES["simple"])
# What gives most models fewer kernels in TensorRT; see `compile.rewrite_selection` for those that it doesn't help.
FASTER: tuple[Pass, ...] = tuple(make_pass(name) for name in PIPELINES["faster"])
CANONICAL = (*SIMPLE, *FASTER)
