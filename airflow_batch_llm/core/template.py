"""The dialect of Jinja that prompts are written in: sandboxed, strict, and with one spelling for values.

Every place where a value becomes text (an output, a text filter, `~`) uses `value.text`, so that a NULL or a
timestamp reads the same wherever it stands. A template of text, columns and a few filters is taken apart into
`Cell`s and constants, which render without Jinja and must give the very same text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from itertools import chain
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.filters import do_capitalize, do_title
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from airflow_batch_llm.core.value import json_text, text
from airflow_batch_llm.errors import PromptError

Step = Callable[[Any], Any]

#: The one name in a template that is not a column.
PARAMS = "params"


def shown(value: object) -> str:
    """Return the value's text; something undefined raises Jinja's own error."""
    return str(value) if isinstance(value, Undefined) else text(value)


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    absent = value is None or isinstance(value, Undefined) or (boolean and not value)
    return default_value if absent else value


def _join(value: Any, d: str = "") -> str:
    return d.join(shown(item) for item in value or ())


#: Filters that need nothing but their value. With constant arguments they do not slow a simple template down.
_SIMPLE_FILTERS: Mapping[str, Callable[..., Any]] = {
    "capitalize": lambda value: do_capitalize(shown(value)),
    "d": _default,
    "default": _default,
    "join": _join,
    "length": lambda value: 0 if value is None else len(value),
    "lower": lambda value: shown(value).lower(),
    "string": shown,
    "title": lambda value: do_title(shown(value)),
    "tojson": json_text,
    "trim": lambda value, chars=None: shown(value).strip(chars),
    "upper": lambda value: shown(value).upper(),
}

#: Jinja's own filters over text: they are given the value's text.
_TEXT_FILTERS = ("center", "indent", "replace", "striptags", "truncate", "wordcount", "wordwrap")

#: Those of them that need only the text, and so are allowed in a simple template.
_PLAIN_TEXT_FILTERS = ("replace", "truncate")

#: Chance would make two plans of one row differ; HTML has no place in a prompt.
_REMOVED_FILTERS = ("random", "safe", "forceescape", "urlize", "xmlattr", "e", "escape")


def _over_text(builtin: Callable[..., Any]) -> Callable[..., Any]:
    at = 1 if hasattr(builtin, "jinja_pass_arg") else 0

    @wraps(builtin)
    def over_text(*args: Any, **kwargs: Any) -> Any:
        return builtin(*args[:at], shown(args[at]), *args[at + 1 :], **kwargs)

    return over_text


class PromptEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's environment for prompts. A field of NULL is NULL; a struct's field wins over a method."""

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=shown)
        self.globals = {name: self.globals[name] for name in ("range", "namespace")}
        for name in _TEXT_FILTERS:
            self.filters[name] = _over_text(self.filters[name])
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        self.filters.update(_SIMPLE_FILTERS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if obj is None:
            return None
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return None if obj is None else super().getitem(obj, argument)


class _ConcatOfTexts(NodeTransformer):
    """`a ~ b` joins the texts of values, as `{{ a }}{{ b }}` does."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:  # noqa: N802 - Jinja's way of naming
        parts = [nodes.Filter(self.visit(part), "string", [], [], None, None) for part in node.nodes]
        return nodes.Concat(parts, lineno=node.lineno)


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter with constant arguments."""

    name: str
    arguments: tuple[Any, ...] = ()
    named: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """A hole in a simple template: a column, and the way from its value to text where that is not `text`."""

    column: str
    convert: Callable[[Any], str] | None
    filters: tuple[Filter, ...] | None = ()
    """The filters of which the way consists, in their order. None: it also takes a field out of the value."""


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template, compiled. `parts` is None where only Jinja can render it."""

    columns: tuple[str, ...]
    render: Callable[[Mapping[str, object]], str]
    parts: tuple[str | Cell, ...] | None


def compile_template(source: str, params: Mapping[str, object]) -> Template:
    """Compile once. Raises `PromptError` for a syntax error or a `params.x` that is not there."""
    dialect = PromptEnvironment()
    try:
        tree = _ConcatOfTexts().visit(dialect.parse(source))
        compiled = dialect.template_class.from_code(
            dialect, dialect.compile(tree), dialect.make_globals({PARAMS: dict(params)})
        )
    except TemplateSyntaxError as error:
        raise PromptError(
            f"The prompt template has a syntax error in line {error.lineno}: {error.message}"
        ) from None
    _check_params(tree, params)
    columns = tuple(sorted(meta.find_undeclared_variables(tree) - {PARAMS, *dialect.globals}))
    return Template(
        columns=columns,
        render=lambda row: compiled.render({name: row[name] for name in columns}),
        parts=_Parts(dialect, params).of(tree),
    )


def _check_params(tree: nodes.Template, params: Mapping[str, object]) -> None:
    for node in tree.find_all(nodes.Getattr):
        if isinstance(node.node, nodes.Name) and node.node.name == PARAMS and node.attr not in params:
            known = ", ".join(sorted(params)) or "none"
            raise PromptError(
                f"The prompt uses params.{node.attr}, which prompt_params does not have. It has: {known}."
            )


class _NotSimple(Exception):
    """This piece of a template needs Jinja."""


class _Parts:
    """Takes a simple template apart."""

    def __init__(self, dialect: PromptEnvironment, params: Mapping[str, object]) -> None:
        self.dialect = dialect
        self.params = params

    def of(self, tree: nodes.Template) -> tuple[str | Cell, ...] | None:
        if not all(isinstance(node, nodes.Output) for node in tree.body):
            return None
        pieces = chain.from_iterable(node.nodes for node in tree.body if isinstance(node, nodes.Output))
        try:
            return tuple(self._part(piece) for piece in pieces)
        except (_NotSimple, UndefinedError, AssertionError, TypeError):  # what Jinja says when it renders
            return None

    def _part(self, piece: nodes.Expr) -> str | Cell:
        if isinstance(piece, nodes.TemplateData):
            return piece.data
        if isinstance(piece, nodes.Name) and piece.name != PARAMS:
            return Cell(piece.name, None)
        root, way = self._way(piece)
        if isinstance(root, nodes.Const):
            return shown(way(root.value))
        if isinstance(root, nodes.Name) and root.name == PARAMS:
            return shown(way(self.params))
        if isinstance(root, nodes.Name) and root.name not in self.dialect.globals:
            return Cell(root.name, lambda value: shown(way(value)), _filters(piece))
        raise _NotSimple

    def _way(self, node: nodes.Node) -> tuple[nodes.Node, Step]:
        """Return the innermost node of an expression, and the function from its value to the expression's value."""
        if isinstance(node, nodes.Getattr):
            step: Step = partial(_swap(self.dialect.getattr), node.attr)
            return self._after(node.node, step)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            return self._after(node.node, partial(_swap(self.dialect.getitem), node.arg.value))
        if isinstance(node, nodes.Filter) and node.node is not None:
            return self._after(node.node, self._filter(node))
        return node, lambda value: value

    def _after(
        self, inner: nodes.Node, step: Callable[[Any], Any]
    ) -> tuple[nodes.Node, Callable[[Any], Any]]:
        root, way = self._way(inner)
        return root, lambda value: step(way(value))

    def _filter(self, node: nodes.Filter) -> Callable[[Any], Any]:
        values = [*node.args, *(pair.value for pair in node.kwargs)]
        constant = all(isinstance(value, nodes.Const) for value in values)
        if not constant or node.dyn_args or node.dyn_kwargs:
            raise _NotSimple
        apply, one = self._function(node.name), _filter(node)
        return lambda value: apply(value, *one.arguments, **dict(one.named))

    def _function(self, name: str) -> Callable[..., Any]:
        if name in _SIMPLE_FILTERS:
            return _SIMPLE_FILTERS[name]
        if name not in _PLAIN_TEXT_FILTERS:
            raise _NotSimple
        given = {"environment": self.dialect, "eval_context": nodes.EvalContext(self.dialect)}
        function = self.dialect.filters[name]
        return partial(function, given[function.jinja_pass_arg.name])


def _filters(node: nodes.Node) -> tuple[Filter, ...] | None:
    """Return the filters of an expression. Returns None if there is more in it than filters of a column."""
    if isinstance(node, nodes.Filter) and node.node is not None:
        before = _filters(node.node)
        return None if before is None else (*before, _filter(node))
    return () if isinstance(node, nodes.Name) else None


def _filter(node: nodes.Filter) -> Filter:
    """Return a filter whose arguments are all constant."""
    named = tuple((str(pair.key), pair.value.as_const()) for pair in node.kwargs)
    return Filter(node.name, tuple(arg.as_const() for arg in node.args), named)


def _swap(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda argument, value: function(value, argument)
