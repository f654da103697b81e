"""Functions on one block of words, from Python to LLVM's language; `compiling` says which.

Parameters say their types; a local has that of what is first put into it. Locals are places in memory, which LLVM turns into
registers.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from llvmlite import ir

from costmodels.compiling.signatures import NotCompilable, kind_of, symbol_of

WORD, REAL, BIT, NOTHING = ir.IntType(64), ir.DoubleType(), ir.IntType(1), ir.VoidType()

_TYPES: Mapping[str, Any] = {
    "IntArray": WORD.as_pointer(),
    "FloatArray": REAL.as_pointer(),
    "int": WORD,
    "float": REAL,
    "bool": BIT,
    "None": NOTHING,
}
_COMPARED: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_ON_BOTH: Mapping[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("add", "fadd"),
    ast.Sub: ("sub", "fsub"),
    ast.Mult: ("mul", "fmul"),
}
_ON_WORDS: Mapping[type[ast.operator], str] = {ast.BitAnd: "and_", ast.BitOr: "or_", ast.LShift: "shl", ast.RShift: "ashr"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """The functions translated so far, which `module` holds; only the first can be called from outside."""

    module: ir.Module = field(default_factory=ir.Module)
    functions: dict[FunctionType, ir.Function] = field(default_factory=dict)

    def of(self, function: FunctionType) -> ir.Function:
        """The compiled form of a function, made when first asked for."""
        if function not in self.functions:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
            if not isinstance(tree, ast.FunctionDef):
                raise NotCompilable(f"{function.__qualname__} is not a plain function")
            kinds = [_TYPES[kind_of(function, one.arg)] for one in tree.args.args]
            made = ir.Function(self.module, ir.FunctionType(_TYPES[kind_of(function, "return")], kinds), symbol_of(function))
            if self.functions:
                made.linkage = "internal"
            self.functions[function] = made
            _Body(self, function, made).write(tree)
        return self.functions[function]


class _Body:
    """Writes one function's instructions."""

    def __init__(self, program: Program, function: FunctionType, made: ir.Function) -> None:
        self.program, self.function, self.made = program, function, made
        self.builder = ir.IRBuilder(made.append_basic_block())
        self.arrays: dict[str, ir.Value] = {}
        self.places: dict[str, ir.Value] = {}
        self.loops: list[tuple[ir.Block, ir.Block]] = []

    def write(self, tree: ast.FunctionDef) -> None:
        """The whole function."""
        for argument, value in zip(tree.args.args, self.made.args, strict=True):
            if isinstance(value.type, ir.PointerType):
                self.arrays[argument.arg] = value
            else:
                self.put(tree, argument.arg, value)
        self.block(tree.body)
        if not self.builder.block.is_terminated:
            if self.made.function_type.return_type == NOTHING:
                self.builder.ret_void()
            else:
                self.builder.unreachable()

    def refused(self, node: ast.AST, what: str) -> NotCompilable:
        line = self.function.__code__.co_firstlineno + getattr(node, "lineno", 1) - 1
        return NotCompilable(f"{self.function.__code__.co_filename}:{line}: {what} is not compiled here")

    # Statements

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.block.is_terminated:
                return
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.Expr(value=ast.Call() as call):
                self.value(call)
            case ast.Return(value=None):
                self.builder.ret_void()
            case ast.Return(value=ast.expr() as value):
                self.builder.ret(self.as_type(node, self.value(value), self.made.function_type.return_type))
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
                for target, value in zip(targets, [self.value(one) for one in values], strict=True):
                    self.assign(target, value)
            case ast.Assign(targets=targets, value=source):
                value = self.value(source)
                for target in targets:
                    self.assign(target, value)
            case ast.AugAssign(target=ast.Name() | ast.Subscript() as target, op=op, value=source):
                place = self.place(target)
                self.store(node, self.binary(node, op, self.builder.load(place), self.value(source)), place)
            case ast.If():
                self.branch(node)
            case ast.While(orelse=[]):
                self.loop(node)
            case ast.For(target=ast.Name(), iter=ast.Call(func=ast.Name(id="range"), keywords=[]), orelse=[]):
                self.count(node)
            case ast.Break() | ast.Continue():
                self.builder.branch(self.loops[-1][isinstance(node, ast.Continue)])
            case _:
                raise self.refused(node, type(node).__name__)

    def branch(self, node: ast.If) -> None:
        then, other, after = (self.made.append_basic_block() for _ in range(3))
        self.builder.cbranch(self.truth(node.test), then, other)
        for block, statements in ((then, node.body), (other, node.orelse)):
            self.builder.position_at_end(block)
            self.block(statements)
            self.go_on(after)
        self.builder.position_at_end(after)

    def loop(self, node: ast.While) -> None:
        test, body, after = (self.made.append_basic_block() for _ in range(3))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(self.truth(node.test), body, after)
        self.repeated(node.body, body, test, after)
        self.builder.branch(test)
        self.builder.position_at_end(after)

    def count(self, node: ast.For) -> None:
        assert isinstance(node.iter, ast.Call)
        assert isinstance(node.target, ast.Name)
        bounds = [self.as_type(node, self.value(one), WORD) for one in node.iter.args]
        if len(bounds) > 2:
            raise self.refused(node, "a range with a step")
        first, end = bounds if len(bounds) == 2 else (WORD(0), bounds[0])
        counter = self.room(WORD)
        self.builder.store(first, counter)
        test, body, step, after = (self.made.append_basic_block() for _ in range(4))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        at = self.builder.load(counter)
        self.builder.cbranch(self.builder.icmp_signed("<", at, end), body, after)
        self.builder.position_at_end(body)
        self.put(node, node.target.id, at)
        self.repeated(node.body, body, step, after)
        self.builder.store(self.builder.add(self.builder.load(counter), WORD(1)), counter)
        self.builder.branch(test)
        self.builder.position_at_end(after)

    def repeated(self, statements: list[ast.stmt], body: ir.Block, again: ir.Block, after: ir.Block) -> None:
        """A loop's body; leaves off where it begins again."""
        self.builder.position_at_end(body)
        self.loops.append((after, again))
        self.block(statements)
        self.loops.pop()
        if again.is_terminated:  # a `while`: its test is written already
            self.go_on(again)
            self.builder.position_at_end(self.made.append_basic_block())
        else:
            self.go_on(again)
            self.builder.position_at_end(again)

    def go_on(self, block: ir.Block) -> None:
        if not self.builder.block.is_terminated:
            self.builder.branch(block)

    # Places

    def room(self, kind: ir.Type) -> ir.Value:
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    def put(self, node: ast.AST, name: str, value: ir.Value) -> None:
        if name in self.arrays:
            raise self.refused(node, f"another array in place of {name}")
        if name not in self.places:
            self.places[name] = self.room(value.type)
        self.store(node, value, self.places[name])

    def assign(self, target: ast.expr, value: ir.Value) -> None:
        if isinstance(target, ast.Name):
            self.put(target, target.id, value)
        else:
            self.store(target, value, self.place(target))

    def place(self, target: ast.expr) -> ir.Value:
        match target:
            case ast.Name(id=name) if name in self.places:
                return self.places[name]
            case ast.Subscript(value=ast.Name(id=name), slice=index) if name in self.arrays:
                return self.builder.gep(self.arrays[name], [self.as_type(target, self.value(index), WORD)])
            case _:
                raise self.refused(target, ast.unparse(target))

    def store(self, node: ast.AST, value: ir.Value, place: ir.Value) -> None:
        self.builder.store(self.as_type(node, value, place.type.pointee), place)

    # Values

    def value(self, node: ast.expr) -> ir.Value:
        match node:
            case ast.Constant(value=constant):
                return self.constant(node, constant)
            case ast.Name(id=name) if name in self.arrays:
                return self.arrays[name]
            case ast.Name(id=name) if name not in self.places:
                return self.constant(node, self.meant(node))
            case ast.Name() | ast.Subscript():
                return self.builder.load(self.place(node))
            case ast.Attribute():
                return self.constant(node, self.meant(node))
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(node, op, self.value(left), self.value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.value(operand)
                return self.builder.fneg(value) if value.type == REAL else self.builder.neg(self.as_type(node, value, WORD))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.builder.not_(self.truth(operand))
            case ast.BoolOp(op=op, values=values):
                return self.joined(values, isinstance(op, ast.And))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARED:
                one, two = self.alike(node, self.value(left), self.value(right))
                return self.compared(_COMPARED[type(op)], one, two)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.either(node, test, body, other)
            case ast.Call(func=called, args=arguments, keywords=[]):
                return self.call(node, self.meant(called), [self.value(one) for one in arguments])
            case _:
                raise self.refused(node, ast.unparse(node))

    def meant(self, node: ast.expr) -> Any:
        """What a name outside the function stands for."""
        match node:
            case ast.Name(id=name):
                names = {"float": float, "int": int, "min": min, "max": max} | self.function.__globals__
                if name in names:
                    return names[name]
            case ast.Attribute(value=ast.Name() as owner, attr=name):
                module = self.meant(owner)
                if isinstance(module, ModuleType) and hasattr(module, name):
                    return getattr(module, name)
        raise self.refused(node, ast.unparse(node))

    def constant(self, node: ast.AST, value: Any) -> ir.Value:
        match value:
            case bool():
                return BIT(int(value))
            case int():
                return WORD(value)
            case float():
                return REAL(value)
            case _:
                raise self.refused(node, f"the value {value!r}")

    def truth(self, node: ast.expr) -> ir.Value:
        """A value as a condition."""
        value = self.value(node)
        return value if value.type == BIT else self.compared("!=", value, value.type(0))

    def as_type(self, node: ast.AST, value: ir.Value, kind: ir.Type) -> ir.Value:
        """Integers as floats and truths as numbers where those are wanted; never a float as an integer."""
        if value.type == kind:
            return value
        if kind == REAL and value.type in (WORD, BIT):
            return self.builder.sitofp(self.as_type(node, value, WORD), REAL)
        if kind == WORD and value.type == BIT:
            return self.builder.zext(value, WORD)
        raise self.refused(node, f"{value.type} where {kind} is wanted")

    def alike(self, node: ast.AST, one: ir.Value, two: ir.Value) -> tuple[ir.Value, ir.Value]:
        kind = REAL if REAL in (one.type, two.type) else WORD
        return self.as_type(node, one, kind), self.as_type(node, two, kind)

    def compared(self, how: str, one: ir.Value, two: ir.Value) -> ir.Value:
        if one.type != REAL:
            return self.builder.icmp_signed(how, one, two)
        return self.builder.fcmp_unordered(how, one, two) if how == "!=" else self.builder.fcmp_ordered(how, one, two)

    def binary(self, node: ast.AST, op: ast.operator, one: ir.Value, two: ir.Value) -> ir.Value:
        if isinstance(op, ast.Div):
            return self.builder.fdiv(self.as_type(node, one, REAL), self.as_type(node, two, REAL))
        one, two = self.alike(node, one, two)
        whole = one.type == WORD
        if type(op) in _ON_BOTH:
            instruction: Any = getattr(self.builder, _ON_BOTH[type(op)][0 if whole else 1])
            return instruction(one, two)
        if whole and type(op) in _ON_WORDS:
            instruction = getattr(self.builder, _ON_WORDS[type(op)])
            return instruction(one, two)
        if whole and isinstance(op, ast.FloorDiv | ast.Mod):
            return self.divided(op, one, two)
        raise self.refused(node, f"{type(op).__name__} of {one.type}")

    def divided(self, op: ast.operator, one: ir.Value, two: ir.Value) -> ir.Value:
        """Downwards, with a remainder that has the divisor's sign; the processor's division goes towards zero."""
        rest = self.builder.srem(one, two)
        across = self.builder.icmp_signed("<", self.builder.xor(rest, two), WORD(0))
        off = self.builder.and_(across, self.builder.icmp_signed("!=", rest, WORD(0)))
        if isinstance(op, ast.Mod):
            return self.builder.select(off, self.builder.add(rest, two), rest)
        return self.builder.sub(self.builder.sdiv(one, two), self.builder.zext(off, WORD))

    def joined(self, nodes: list[ast.expr], both: bool) -> ir.Value:
        """`and` or `or` of conditions."""
        after = self.made.append_basic_block()
        found: list[tuple[ir.Value, ir.Block]] = []
        for node in nodes[:-1]:
            value = self.truth(node)
            found.append((BIT(int(not both)), self.builder.block))
            further = self.made.append_basic_block()
            self.builder.cbranch(value, *((further, after) if both else (after, further)))
            self.builder.position_at_end(further)
        found.append((self.truth(nodes[-1]), self.builder.block))
        return self.met(after, found)

    def either(self, node: ast.IfExp, test: ast.expr, body: ast.expr, other: ast.expr) -> ir.Value:
        then, otherwise, after = (self.made.append_basic_block() for _ in range(3))
        self.builder.cbranch(self.truth(test), then, otherwise)
        found: list[tuple[ir.Value, ir.Block]] = []
        for block, one in ((then, body), (otherwise, other)):
            self.builder.position_at_end(block)
            found.append((self.value(one), self.builder.block))
        if found[0][0].type != found[1][0].type:
            raise self.refused(node, "an expression of one type or another")
        self.builder.position_at_end(found[0][1])
        self.builder.branch(after)
        self.builder.position_at_end(found[1][1])
        return self.met(after, found)

    def met(self, after: ir.Block, found: list[tuple[ir.Value, ir.Block]]) -> ir.Value:
        """Where paths meet: the value of the one taken."""
        self.builder.branch(after)
        self.builder.position_at_end(after)
        value = self.builder.phi(found[0][0].type)
        for one, block in found:
            value.add_incoming(one, block)
        return value

    def call(self, node: ast.Call, called: Any, values: list[ir.Value]) -> ir.Value:
        if called in (min, max) and len(values) == 2:
            one, two = self.alike(node, *values)
            return self.builder.select(self.compared("<" if called is min else ">", two, one), two, one)
        if called is float and len(values) == 1:
            return self.as_type(node, values[0], REAL)
        if called is math.floor and len(values) == 1:
            floor = self.program.module.declare_intrinsic("llvm.floor", [REAL])
            return self.builder.fptosi(self.builder.call(floor, [self.as_type(node, values[0], REAL)]), WORD)
        if isinstance(called, FunctionType):
            made = self.program.of(called)
            wanted = made.function_type.args
            if len(wanted) != len(values):
                raise self.refused(node, f"{len(values)} arguments for the {len(wanted)} of {called.__name__}")
            return self.builder.call(made, [self.as_type(node, one, kind) for one, kind in zip(values, wanted, strict=True)])
        raise self.refused(node, ast.unparse(node))
