"""Check the house rules that neither ruff nor mypy knows; one line per finding, exit 1 on any.

    python tools/check_budgets.py [ROOT]

Sizes: files, functions, parameters. Words: placeholders and unsafe serializers. Places: broad
`except`, the environment, module-level mutable state, folders without `__init__.py`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PRODUCT = ("config", "kernels", "pipelines", "server")
CHECKED = (*PRODUCT, "tests", "tools", "benchmarks")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 150
MAX_PARAMETERS = 8

PLACEHOLDERS = ("TODO", "FIXME", "NotImplementedError", "recv_pyobj", "send_pyobj")
NAMES_PLACEHOLDERS = ("tools/check_budgets.py", "tests/tools/test_check_budgets.py")
UNSAFE_MODULES = ("pickle", "dill", "cloudpickle", "marshal", "shelve")
MAY_CATCH_ALL = {
    "pipelines/architectures/custom.py": "a person's own module can raise anything",
    "pipelines/chat_template.py": "a template of strangers can raise anything",
    "pipelines/encoder_tokenizer.py": "the tokenizers library raises bare Exception",
    "pipelines/llm.py": "the engine thread hands its error to the waiting callers",
    "pipelines/tokenizer.py": "the tokenizers library raises bare Exception",
    "pipelines/weights/pytorch_converter.py": "the process's top: what a file provokes is one line",
    "pipelines/worker/process.py": "the worker's top: logged, then the exit code",
    "server/batches/line_request.py": "the request boundary of a batch's line: logged, told as 500",
    "server/daemon.py": "a thread hands its error to the coroutine that awaits it",
    "server/middleware.py": "the request boundary: logged, answered with 500",
    "server/openai/generation.py": "a reader task hands its error to the waiting reply",
    "server/openai/sse.py": "the request boundary in mid-stream: logged, an SSE error event",
}
"""Process and request boundaries, and why an unknown error is caught there."""
MUTATORS = frozenset(
    ("append", "extend", "insert", "pop", "popitem", "remove", "clear", "update")
    + ("setdefault", "add", "discard", "sort", "reverse")
)
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*|__\w+__")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Source:
    """One parsed file; `path` is relative to the root, with forward slashes."""

    path: str
    text: str
    tree: ast.Module

    @property
    def top(self) -> str:
        return self.path.partition("/")[0]

    @property
    def is_product(self) -> bool:
        return self.top in PRODUCT

    def finding(self, node: ast.AST, message: str) -> Finding:
        return Finding(self.path, getattr(node, "lineno", 1), message)


def check_sizes(source: Source) -> Iterator[Finding]:
    lines = source.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield Finding(source.path, 1, f"file has {lines} lines, at most {MAX_FILE_LINES}")
    for node in ast.walk(source.tree):
        if not isinstance(node, FunctionNode):
            continue
        is_kernel = _is_kernel(node)
        limit = MAX_KERNEL_LINES if is_kernel else MAX_FUNCTION_LINES
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > limit:
            yield source.finding(node, f"{node.name} has {length} lines, at most {limit}")
        count = _num_parameters(node)
        if count > MAX_PARAMETERS and not is_kernel:
            yield source.finding(
                node, f"{node.name} has {count} parameters, at most {MAX_PARAMETERS}"
            )


def _is_kernel(node: FunctionNode) -> bool:
    names = {
        part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "")
        for decorator in node.decorator_list
        for part in ast.walk(decorator)
    }
    return "jit" in names


def _num_parameters(node: FunctionNode) -> int:
    """Parameters that a caller must give or give in order; keyword-only options do not count."""
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args]
    if named and named[0].arg in ("self", "cls"):
        named = named[1:]
    required = [default for default in arguments.kw_defaults if default is None]
    return len(named) + len(required)


def check_words(source: Source) -> Iterator[Finding]:
    lines = [] if source.path in NAMES_PLACEHOLDERS else source.text.splitlines()
    for number, line in enumerate(lines, 1):
        for word in PLACEHOLDERS:
            if re.search(rf"\b{word}\b", line):
                yield Finding(source.path, number, f"forbidden word {word}")
    for node in ast.walk(source.tree):
        for module in _imported(node):
            if module.partition(".")[0] in UNSAFE_MODULES:
                yield source.finding(node, f"import of {module}, which runs what it reads")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []


def check_broad_except(source: Source) -> Iterator[Finding]:
    if not source.is_product:
        return
    broad = [
        node
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not _only_cleans_up(node)
    ]
    if source.path not in MAY_CATCH_ALL:
        message = "broad except outside the process and request boundaries"
        yield from (source.finding(node, message) for node in broad)
    elif not broad:
        yield Finding(source.path, 1, "listed as a boundary, but has no broad except")


def _is_broad(node: ast.ExceptHandler) -> bool:
    caught = [] if node.type is None else list(ast.walk(node.type))
    names = {part.id for part in caught if isinstance(part, ast.Name)}
    return node.type is None or bool(names & {"Exception", "BaseException"})


def _only_cleans_up(node: ast.ExceptHandler) -> bool:
    """Whether the handler ends in a bare `raise`: nothing is swallowed."""
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def check_environment(source: Source) -> Iterator[Finding]:
    if source.top not in ("kernels", "pipelines", "server"):
        return
    for node in ast.walk(source.tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        imported = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if {"environ", "environb", "getenv"} & {name, *imported}:
            yield source.finding(node, "the environment is read in config/ only")


def check_module_state(source: Source) -> Iterator[Finding]:
    """Module-level containers must be named as constants and never be changed by their module."""
    if not source.is_product:
        return
    containers = set()
    for node in source.tree.body:
        for name in _container_names(node):
            containers.add(name)
            if not CONSTANT.fullmatch(name):
                yield source.finding(node, f"module-level mutable state: {name}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield source.finding(
                node, f"global {', '.join(node.names)}: module-level mutable state"
            )
        for name in _changed_names(node) & containers:
            yield source.finding(node, f"{name} is a constant and is changed here")


def _container_names(node: ast.stmt) -> list[str]:
    """Names that a module-level statement binds to a list, dict, set or a call that makes one."""
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets, value = [node.target], node.value
    else:
        return []
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = ("list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter")
    made = isinstance(value, ast.Call) and getattr(value.func, "id", "") in makers
    if not (made or isinstance(value, displays)):
        return []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _changed_names(node: ast.AST) -> set[str]:
    """Names whose container the node changes through a method, an item or `+=`."""
    changed: list[ast.expr] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in MUTATORS:
            changed.append(node.func.value)
    elif isinstance(node, (ast.Assign, ast.Delete)):
        changed += [target.value for target in node.targets if isinstance(target, ast.Subscript)]
    elif isinstance(node, ast.AugAssign):
        target = node.target
        changed.append(target.value if isinstance(target, ast.Subscript) else target)
    return {part.id for part in changed if isinstance(part, ast.Name)}


CHECKS = (check_sizes, check_words, check_broad_except, check_environment, check_module_state)


def code_files(root: Path) -> list[Path]:
    return sorted(
        path
        for top in CHECKED
        for path in (root / top).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def check_packages(root: Path) -> Iterator[Finding]:
    """Each product folder with code is a package; tests are not one (pytest's importlib mode)."""
    for folder in sorted({path.parent for path in code_files(root)}):
        name = folder.relative_to(root).as_posix()
        has_init = (folder / "__init__.py").is_file()
        if name.partition("/")[0] in PRODUCT:
            parents = [folder, *folder.parents]
            missing = [
                p
                for p in parents
                if p.is_relative_to(root) and p != root and not (p / "__init__.py").is_file()
            ]
            if missing:
                yield Finding(name, 1, "code folder without __init__.py")
        elif name.startswith("tests") and has_init:
            yield Finding(name, 1, "__init__.py under tests")


def check(root: Path) -> list[Finding]:
    findings = list(check_packages(root))
    for path in code_files(root):
        text = path.read_text(encoding="utf-8")
        source = Source(path.relative_to(root).as_posix(), text, ast.parse(text, str(path)))
        findings += [finding for rule in CHECKS for finding in rule(source)]
    return findings


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    findings = check(root)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
