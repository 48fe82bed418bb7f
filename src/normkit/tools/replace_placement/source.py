"""Rewrites expressions in the methods of modules: which norm is called, and on what.

A module whose methods are rewritten keeps its place, parameters and attributes. It gets a subclass of its class under
the same name, made at run time; copies and pickles make this subclass again from the text of its methods.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
from collections.abc import Callable, Collection, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, ClassVar, cast

from torch import nn

from normkit.tools.model.refusal import RefusedError
from normkit.tools.replace_placement.record import Place, Site

Change = Callable[[ast.expr], ast.expr]
Methods = tuple[tuple[str, str], ...]
"""Names and texts."""

FACTORY = "_make_method"


class Rewritten:
    """The base of the classes that have rewritten methods; see `rewritten_class`."""

    rewritten: ClassVar[Methods]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle and deepcopy find classes by name, and this one is made at run time: they get the way to make it again.
        made, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        base = type(self).__bases__[-1]
        plain = tuple(base if argument is type(self) else argument for argument in arguments)
        return _rebuild, (base, self.rewritten, made, plain), *rest


_CLASSES: dict[tuple[type, Methods], type[nn.Module]] = {}


def rewritten_class(base: type, methods: Methods) -> type[nn.Module]:
    """The subclass of a class with these texts of its methods; it has the same name.

    Args:
        base: the class of a module.
        methods: name and text of each rewritten method, as `MethodEdits.text` gives it.
    """
    key = base, methods
    if key not in _CLASSES:
        names: dict[str, Any] = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
        names |= {name: _compiled(base, name, text) for name, text in methods}
        _CLASSES[key] = type(base)(base.__name__, (Rewritten, base), names | {"rewritten": methods})
    return _CLASSES[key]


def rewrite(module: nn.Module, methods: Methods) -> None:
    """Give a module these methods; those that were rewritten before stay, unless they are named again."""
    known = dict(type(module).rewritten if isinstance(module, Rewritten) else ())
    base = type(module).__bases__[-1] if isinstance(module, Rewritten) else type(module)
    module.__class__ = rewritten_class(base, tuple(sorted((known | dict(methods)).items())))


def _rebuild(base: type, methods: Methods, made: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    module = made(*arguments)
    module.__class__ = rewritten_class(base, methods)
    return module


def _compiled(base: type, method: str, text: str) -> Any:
    """The method of a class with another text: same globals, same variables around it, same defaults."""
    original = _function(base, method)
    name = f"<normkit {base.__name__}.{method} {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    # Where tracebacks, debuggers and `inspect` look for the text.
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    made: dict[str, Any] = {}
    exec(compile(text, name, "exec"), original.__globals__, made)
    around = [cell.cell_contents for cell in original.__closure__ or ()]
    function = made[FACTORY](*around)
    inner = inspect.unwrap(function)
    inner.__defaults__, inner.__kwdefaults__ = original.__defaults__, original.__kwdefaults__
    inner.__qualname__ = original.__qualname__
    return function


def _function(cls: type, method: str) -> FunctionType:
    return cast(FunctionType, inspect.unwrap(getattr(cls, method)))


class MethodEdits:
    """The changes of one method of one module; nothing happens before `text` is used.

    Raises:
        RefusedError: its code cannot be read, or would not run at another place.
    """

    def __init__(self, site: Site) -> None:
        self.module, self.name, self.code = site.module, site.method, site.code
        if _function(type(site.module), site.method).__code__ is not site.code:
            raise RefusedError(f"{self._where()} is called by super(), so that it cannot be replaced alone")
        self.function, self.shift = _parsed(site.code, self._where())
        private = [
            name
            for node in ast.walk(self.function)
            if (name := getattr(node, "id", getattr(node, "attr", ""))).startswith("__") and not name.endswith("__")
        ]
        if private:
            raise RefusedError(f"{self._where()} uses the private name {private[0]}")
        self.me = [*self.function.args.posonlyargs, *self.function.args.args][0].arg
        self.changes: dict[ast.AST, list[Change]] = {}
        self.targets: dict[ast.AST, ast.expr] = {}
        """What ``x += y`` reads of x, as an expression of its own."""
        self.first: list[ast.stmt] = []
        self.walruses = 0

    def _where(self) -> str:
        return f"{type(self.module).__name__}.{self.name}"

    def node(self, place: Place) -> Any:
        """The expression or statement at a place.

        Raises:
            RefusedError: there is no sum, product or call.
        """
        for node in ast.walk(self.function):
            if isinstance(node, ast.Call | ast.BinOp | ast.AugAssign):
                lines = node.lineno + self.shift, (node.end_lineno or 0) + self.shift
                if (*lines, node.col_offset, node.end_col_offset) == place:
                    return node
        raise RefusedError(f"{self._where()} has no expression of its own there")

    def operand(self, place: Place, index: int) -> ast.expr:
        """One operand of the sum or product at a place, or of a call that computes it."""
        node = self.node(place)
        if isinstance(node, ast.BinOp):
            return (node.left, node.right)[index]
        if isinstance(node, ast.AugAssign):
            return node.value if index == 1 else self.targets.setdefault(node, _loaded(node.target))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            operands = node.args if of_torch else [node.func.value, *node.args]
            if len(operands) == 2:
                return operands[index]
        raise RefusedError(f"{self._where()} adds or scales in a way that is not understood")

    def scaled(self, place: Place, index: int, tensors: int, names: Collection[str]) -> ast.expr:
        """What a product multiplies by a number or a parameter.

        Args:
            place: of the product.
            index: of the value among the tensors that it reads.
            tensors: how many these are; of a product with a number torch does not say which operand came first.
            names: variables with that value.
        """
        node = self.node(place)
        if tensors > 1 or not isinstance(node, ast.BinOp):
            return self.operand(place, index)
        found = [
            side
            for side in (node.left, node.right)
            if isinstance(side, ast.Call | ast.BinOp) or (isinstance(side, ast.Name) and side.id in names)
        ]
        if len(found) != 1:
            raise RefusedError(f"{self._where()} scales its branch in a way that is not understood")
        return found[0]

    def argument(self, place: Place) -> ast.expr:
        """The first argument of the call at a place."""
        node = self.node(place)
        given = [*node.args, *(word.value for word in node.keywords)] if isinstance(node, ast.Call) else []
        if not given or isinstance(given[0], ast.Starred):
            raise RefusedError(f"{self._where()} does not pass a single tensor there")
        return given[0]

    def check_sum(self, place: Place) -> None:
        """Refuse a sum that is computed by other code than the expression itself."""
        self.operand(place, 1)
        node = self.node(place)
        called = getattr(node.func, "attr", "a function") if isinstance(node, ast.Call) else ""
        if (called and called not in ("add", "add_")) or not (called or isinstance(node.op, ast.Add)):
            raise RefusedError(f"{self._where()} leaves its sum to {called or 'another operation'}")

    def remove_call(self, place: Place, norm: nn.Module) -> None:
        """Replace the call of a norm by its argument."""
        node = self.node(place)
        if not isinstance(node, ast.Call) or self._called(node.func) is not norm:
            raise RefusedError(f"{self._where()} does not call its {type(norm).__name__} by name")
        if len(node.args) + len(node.keywords) != 1:
            raise RefusedError(f"{self._where()} calls its {type(norm).__name__} with further arguments")
        self.argument(place)
        self.changes.setdefault(node, []).append(_argument_of)

    def _called(self, node: ast.expr) -> Any:
        """The module that an expression such as ``self.layers[0].norm`` means."""
        if isinstance(node, ast.Name):
            return self.module if node.id == self.me else None
        if isinstance(node, ast.Attribute):
            return getattr(self._called(node.value), node.attr, None)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            held, key = self._called(node.value), cast(Any, node.slice.value)
            return held[key] if isinstance(held, (nn.ModuleList, nn.ModuleDict, nn.Sequential)) else None
        return None

    def wrap(self, node: Any, name: str) -> None:
        """Call the module with this dotted name on the value of an expression."""
        self.changes.setdefault(node, []).append(lambda value: ast.Call(self.reference(name), [value], []))

    def wrap_reads(self, reads: list[ast.expr], name: str) -> None:
        """The same for several expressions with one value; the module is called once.

        Raises:
            RefusedError: they are not in statements of one block, so that the first one may not run.
        """
        if len(reads) == 1:
            self.wrap(reads[0], name)
            return
        # Python evaluates operands and arguments from the left to the right.
        reads = sorted(reads, key=lambda read: (read.lineno, read.col_offset))
        blocks = {id(self._block(read)) for read in reads}
        if len(blocks) > 1:
            raise RefusedError(f"{self._where()} reads the input of the branch in several blocks of code")
        self.walruses += 1
        variable = f"_normalized_{self.walruses}"
        self.changes.setdefault(reads[0], []).append(
            lambda value: ast.NamedExpr(ast.Name(variable, ast.Store()), ast.Call(self.reference(name), [value], []))
        )
        for read in reads[1:]:
            self.changes.setdefault(read, []).append(lambda value: ast.Name(variable, ast.Load()))

    def _block(self, node: ast.AST) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for holder in ast.walk(self.function):
            for block in (getattr(holder, key, None) for key in ("body", "orelse", "finalbody")):
                if isinstance(block, list) and any(node in ast.walk(each) for each in block):
                    found = block  # walked from the outside, so that the innermost is the last
        return found

    def reads(self, place: Place, names: set[str]) -> list[ast.expr]:
        """The operands and arguments at a place that are variables with one of these names, else all such inside."""
        node = self.node(place)
        if isinstance(node, ast.Call):
            direct = [*node.args, *(word.value for word in node.keywords)]
            direct += [node.func.value] if isinstance(node.func, ast.Attribute) else []
        else:
            direct = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.value]
        inside = [*ast.walk(node)]
        found = [
            [each for each in part if isinstance(each, ast.Name) and each.id in names] for part in (direct, inside)
        ]
        return [*(found[0] or found[1])]

    def normalize_first(self, variable: str, name: str) -> None:
        """Before all else, call a module on an argument of the method."""
        call = ast.Call(self.reference(name), [ast.Name(variable, ast.Load())], [])
        self.first.append(ast.Assign([ast.Name(variable, ast.Store())], call))

    def remove_first(self, norm: nn.Module) -> None:
        """Undo `normalize_first`."""
        for statement in self.function.body:
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Call) and self._called(value.func) is norm:
                self.function.body.remove(statement)
                return

    def reference(self, name: str) -> ast.expr:
        """The expression for the module with a dotted name inside this one."""
        found: ast.expr = ast.Name(self.me, ast.Load())
        for key in name.split("."):
            if key.isidentifier():
                found = ast.Attribute(found, key, ast.Load())
            else:
                found = ast.Subscript(found, ast.Constant(int(key) if key.isdecimal() else key), ast.Load())
        return found

    def text(self) -> str:
        """The changed method, as the result of a function whose arguments are the variables around the method."""
        function = cast(ast.FunctionDef, _Changer(self.changes, self.targets).visit(self.function))
        docstring = ast.get_docstring(function) is not None
        function.body[docstring:docstring] = self.first
        arguments = function.args
        for each in ast.walk(arguments):
            if isinstance(each, ast.arg):
                each.annotation = None
        function.returns = None
        # The values of the original ones are taken over.
        arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
        arguments.kw_defaults = [value and ast.Constant(None) for value in arguments.kw_defaults]
        outer = [ast.arg(name) for name in self.code.co_freevars]
        factory = ast.FunctionDef(
            FACTORY,
            ast.arguments([], outer, None, [], [], None, []),
            [function, ast.Return(ast.Name(function.name, ast.Load()))],
            [],
        )
        return ast.unparse(ast.fix_missing_locations(ast.Module([factory], []))) + "\n"


def _argument_of(call: ast.expr) -> ast.expr:
    assert isinstance(call, ast.Call)
    return call.args[0] if call.args else call.keywords[0].value


def _parsed(code: CodeType, where: str) -> tuple[ast.FunctionDef, int]:
    """The definition of a function, and the number that makes its lines those of its file."""
    try:
        lines, first = inspect.getsourcelines(code)
    except OSError:
        lines = linecache.getlines(code.co_filename)
        first = 1
    if not lines:
        raise RefusedError(f"the source of {where} cannot be read: define the class in a file")
    indented = lines[0][:1].isspace()
    try:
        tree = ast.parse("if True:\n" * indented + "".join(lines))
    except SyntaxError:
        raise RefusedError(f"the source of {where} cannot be parsed") from None
    for node in _functions(tree):
        # A decorated function begins at its first decorator.
        begin = min([node.lineno, *(each.lineno for each in node.decorator_list)]) + first - 1 - indented
        if node.name == code.co_name and begin == code.co_firstlineno:
            return node, first - 1 - indented
    raise RefusedError(f"the source of {where} is not that of a method")


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _loaded(target: ast.expr) -> ast.expr:
    """The value of a variable or attribute that is assigned to."""
    return ast.parse(ast.unparse(target), mode="eval").body


class _Changer(ast.NodeTransformer):
    """Applies changes to expressions, the innermost first; a changed ``x += y`` becomes ``x = x + y``."""

    def __init__(self, changes: Mapping[ast.AST, list[Change]], targets: Mapping[ast.AST, ast.expr]) -> None:
        self.changes, self.targets = changes, targets

    def visit(self, node: ast.AST) -> Any:
        changes: list[Change] = self.changes.get(node, [])
        self.generic_visit(node)
        if isinstance(node, ast.AugAssign) and (changes or node in self.targets):
            left = self.visit(self.targets.get(node, _loaded(node.target)))
            changed = ast.BinOp(left, node.op, node.value)
            return ast.Assign([node.target], self._applied(changes, changed))
        return self._applied(changes, node)

    @staticmethod
    def _applied(changes: list[Change], node: Any) -> Any:
        for change in changes:
            node = change(node)
        return node
