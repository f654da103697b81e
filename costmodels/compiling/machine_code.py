"""Plain functions on one block of words, compiled to machine code through LLVM in about a second.

The event loop is Python that anyone may read, step through or run as it stands. It uses little of the language: arrays of
8-byte integers and floats that are read and written one word at a time, numbers, comparisons, `if`, `while`, `for` over a
range, and calls of other such functions. So little needs no inference of types (a general compiler took twenty times as long
for this loop, and its memory): parameters say theirs, and a local has that of what is first put into it. Whatever
is not understood raises `NotCompilable`, with its place. Arithmetic is Python's: integers divide downwards, `min` and `max`
return their first argument on a tie, `and` and `or` look no further than they must; nothing is reordered. Not checked: an
index outside the array, an integer beyond 64 bits, a division by zero. With a `folder`, what was compiled once is kept
(`kept_code`).
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numpy as np
from llvmlite import binding

from costmodels.compiling import kept_code
from costmodels.compiling.signatures import kind_of, plain, symbol_of

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


def compiled(function: Callable[..., Any], folder: Path | None = None) -> Compiled:
    """`function` and all it calls; read from `folder` where it was compiled before, and kept there."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    cpu, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    entry = plain(function)
    name = kept_code.name_of(entry, f"{_recipe()} {binding.get_default_triple()} {cpu} {features}") if folder else ""
    code = kept_code.read(folder, name) if folder else None
    if code is None:
        code = _machine_code(entry, machine)
        if folder:
            kept_code.write(folder, name, code)
    engine.add_object_file(binding.object_file.ObjectFileRef.from_data(code))
    engine.finalize_object()
    kinds = [_CTYPES[kind_of(entry, parameter)] for parameter in inspect.signature(entry).parameters]
    signature = ctypes.CFUNCTYPE(_CTYPES[kind_of(entry, "return")], *kinds)
    return Compiled(engine=engine, code=signature(engine.get_function_address(symbol_of(entry))))


def _recipe() -> str:
    """What machine code depends on beside the functions and the processor: the lines that make it, and LLVM."""
    lines = "".join((Path(__file__).parent / file).read_text() for file in ("machine_code.py", "translation.py"))
    return f"{lines} {llvmlite.__version__} {binding.llvm_version_info}"


def _machine_code(entry: FunctionType, machine: Any) -> bytes:
    """An object file, optimised for this processor; more effort took longer here and made nothing faster."""
    from costmodels.compiling.translation import Program

    program = Program()
    program.of(entry)
    parsed = binding.parse_assembly(str(program.module))
    parsed.verify()
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=1))
    builder.getModulePassManager().run(parsed, builder)
    return bytes(machine.emit_object(parsed))
