"""Wrong programs made from right ones."""

import ast
from collections.abc import Iterator

OTHER = """
def _other(x):
    for kind, change in ((bool, lambda: not x), ((int, float), lambda: x + 1), (str, lambda: x + "x"),
                         (list, lambda: [*x, None]), (tuple, lambda: (*x, None)), (dict, lambda: {**x, "x": 1})):
        if isinstance(x, kind):
            return change()
    return 0 if x is None else [x]
"""
_COMPARED: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Mod: ast.FloorDiv,
    ast.FloorDiv: ast.Mod,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}


def returns_nothing(source: str, name: str) -> str:
    """The function `name` returns None at once."""
    tree = ast.parse(source)
    _function(tree, name).body = [ast.Return(ast.Constant(None))]
    return ast.unparse(ast.fix_missing_locations(tree))


def returns_another(source: str, name: str) -> str:
    """Every result of the function `name` is changed: a number by 1, a text or list by one item, a bool flipped."""
    tree = ast.parse(source)
    function = _function(tree, name)
    for node in _own(function):
        if isinstance(node, ast.Return) and node.value is not None:
            node.value = ast.Call(ast.Name("_other", ast.Load()), [node.value], [])
    return OTHER + ast.unparse(ast.fix_missing_locations(tree))


def operators_swapped(source: str, name: str) -> Iterator[str]:
    """The program with one operator of the function `name` exchanged for another, for each that it has."""
    count = sum(
        isinstance(node, ast.Compare | ast.BinOp) for node in ast.walk(_function(ast.parse(source), name))
    )
    for index in range(count):
        tree = ast.parse(source)
        sites = [n for n in ast.walk(_function(tree, name)) if isinstance(n, ast.Compare | ast.BinOp)]
        site = sites[index]
        if isinstance(site, ast.Compare) and type(site.ops[0]) in _COMPARED:
            site.ops[0] = _COMPARED[type(site.ops[0])]()
        elif isinstance(site, ast.BinOp) and type(site.op) in _COMPUTED:
            site.op = _COMPUTED[type(site.op)]()
        else:
            continue
        yield ast.unparse(ast.fix_missing_locations(tree))


def _function(tree: ast.Module, name: str) -> ast.FunctionDef:
    return [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name][-1]


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
