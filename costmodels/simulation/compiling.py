"""Plain functions on one block of words, compiled to machine code through LLVM in about a second.

The event loop is Python that anyone may read, step through or run as it stands. It uses little of the language: arrays of
8-byte integers and floats that are read and written one word at a time, numbers, comparisons, `if`, `while`, `for` over a
range, and calls of other such functions. So little needs no inference of types (a general compiler took twenty times as long
for this loop, and its memory): parameters say theirs, and a local has that of what is first put into it. Whatever
is not understood raises `NotCompilable`, with its place. Arithmetic is Python's: integers divide downwards, `min` and `max`
return their first argument on a tie, `and` and `or` look no further than they must; nothing is reordered. Not checked: an
index outside the array, an integer beyond 64 bits, a division by zero.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding, ir

from costmodels.simulation.translation import Program, kind_of, plain

_CTYPES: Mapping[str, Any] = {
    "IntArray": ctypes.c_void_p,
    "FloatArray": ctypes.c_void_p,
    "int": ctypes.c_int64,
    "float": ctypes.c_double,
    "bool": ctypes.c_bool,
    "None": None,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """A function as machine code, which lives as long as `engine`; takes numpy arrays of 8-byte words, contiguous."""

    engine: Any
    code: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        return self.code(*(one.ctypes.data if isinstance(one, np.ndarray) else one for one in arguments))


def compiled(function: Callable[..., Any]) -> Compiled:
    """`function` and all it calls."""
    entry = plain(function)
    program = Program()
    program.of(entry)
    engine = _machine_code(program.module)
    kinds = [_CTYPES[kind_of(entry, name)] for name in inspect.signature(entry).parameters]
    signature = ctypes.CFUNCTYPE(_CTYPES[kind_of(entry, "return")], *kinds)
    return Compiled(engine=engine, code=signature(engine.get_function_address(program.names[entry])))


def _machine_code(module: ir.Module) -> Any:
    """Optimise, for this processor; more effort took longer here and made nothing faster."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    features = binding.get_host_cpu_features().flatten()
    machine = target.create_target_machine(cpu=binding.get_host_cpu_name(), features=features, opt=3, jit=True)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=1))
    builder.getModulePassManager().run(parsed, builder)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine
