"""The pages for readers: what they name exists, their Python compiles, and their tables leave nothing out."""

import ast
import pathlib
import re
import textwrap
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = "configs", "docs", "experiments", "tests", "tpu_setup", "transfusion"
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/*.md", "configs/*.md", "experiments/*/README.md", "tpu_setup/*.md")
    for path in sorted(ROOT.glob(pattern))
]

each_page = pytest.mark.parametrize("page", PAGES)


def read(page: str) -> str:
    return (ROOT / page).read_text()


def without_code(text: str) -> str:
    """The text without its fenced blocks, in which `#` begins a comment and brackets are no links."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)


def python_blocks(text: str) -> list[str]:
    blocks = re.findall(r"^ *```python\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in blocks]


def source_of(module: str) -> pathlib.Path | None:
    """The file of a module or package of this repository; None if there is no such module."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def is_known(name: str) -> bool:
    """Whether a dotted name is a module, or a module that mentions what stands behind its last dot."""
    module, _, attribute = name.rpartition(".")
    if source_of(name):
        return True
    source = source_of(module)
    return source is not None and re.search(rf"\b{attribute}\b", source.read_text()) is not None


@each_page
def test_links_lead_to_files_of_the_repository(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(read(page)))
    local = [target.partition("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
    missing = [target for target in local if not ((ROOT / page).parent / target).exists()]
    assert not missing


@each_page
def test_paths_that_are_named_exist(page):
    named = re.findall(rf"(?<![\w./~-])((?:{'|'.join(FOLDERS)})/[\w./-]*)(?::(\w+))?", read(page))
    paths = {(path.rstrip("."), form) for path, form in named}
    here = (ROOT / page).parent
    missing = [path for path, _ in paths if not (ROOT / path).exists() and not (here / path).exists()]
    assert not missing
    forms = [(path, form) for path, form in paths if form and path.startswith("configs/")]
    assert not [f"{path}:{form}" for path, form in forms if not re.search(rf'[":]{form}\b', read(path))]


@each_page
def test_modules_and_their_members_that_are_named_exist(page):
    text = re.sub(r"\]\([^)]*\)", "]", read(page))  # without the targets of links
    names = set(re.findall(r"(?<![\w./-])transfusion(?:\.[A-Za-z_]\w*)+", text))
    assert not [name for name in names if not is_known(name)]


@each_page
def test_programs_that_are_named_can_be_run(page):
    for name in set(re.findall(r"python -m (transfusion[.\w]*\w)", read(page))):
        package = ROOT / name.replace(".", "/") / "__main__.py"
        source = package if package.is_file() else source_of(name)
        assert source is not None and "__main__" in source.read_text() + source.name, name


@each_page
def test_python_blocks_compile_and_import_what_exists(page):
    for block in python_blocks(read(page)):
        tree = compile(block, page, "exec", flags=ast.PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "transfusion":
                assert not [a.name for a in node.names if not is_known(f"{node.module}.{a.name}")], node.module


@each_page
def test_a_page_has_one_heading_of_the_first_level(page):
    assert len(re.findall(r"^# ", without_code(read(page)), re.MULTILINE)) == 1


def test_the_front_page_is_short():
    assert len(read("README.md").splitlines()) <= 150


def test_the_map_of_the_front_page_has_every_folder():
    top = [path for path in (ROOT / "transfusion").iterdir() if (path / "__init__.py").is_file()]
    assert not [path.name for path in top if f"`transfusion/{path.name}/`" not in read("README.md")]


def test_every_page_is_in_the_table_of_contents():
    contents = read("docs/README.md")
    pages = [page for page in PAGES if page.startswith(("docs/", "experiments/")) and page != "docs/README.md"]
    assert not [page for page in pages if f"({page.removeprefix('docs/')})" not in contents.replace("(../", "(")]


def test_every_extra_is_in_the_table_of_extras():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    table = read("docs/installation.md")
    assert not [name for name in extras if not re.search(rf"^\|.*`{name}`.*\|", table, re.MULTILINE)]


def test_every_program_is_in_the_table_of_programs():
    programs = [path.stem for path in (ROOT / "transfusion").glob("*.py") if "programs.run(" in path.read_text()]
    table = read("docs/programs.md")
    assert len(programs) > 5
    assert not [name for name in programs if f"| `{name} " not in table]


def test_every_config_is_in_the_table_of_systems():
    table = read("docs/systems.md")
    assert not [path.name for path in (ROOT / "configs").glob("*.py") if f"`configs/{path.name}" not in table]
