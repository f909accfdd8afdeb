"""Makes the site out of the pages of the repository; mkdocs calls the functions named `on_...`.

The pages are written to be read in the repository: they link by relative paths, also to files outside of docs/. Here
those outside (the front page, the studies, the configs) join the site, and a link to a file that is no page leads to
the repository. The page of all fields, and the reference of all modules, are made from the code.
"""

import pathlib
import posixpath
import re
from collections.abc import Iterator

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/transfusion-jax/transfusion"
# Where a page of the repository stands in the site, if that is not its own path (without docs/).
MOVED = {"README.md": "index.md", "docs/README.md": "contents.md"}
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "configs/README.md", "tpu_setup/README.md")
STUDIES = "experiments/*/README.md"
PICTURES = "experiments/**/*.png"
GENERATED = "fields.md"
# Code of fences and between back-ticks, which holds no links.
CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


def site_pages() -> dict[str, str]:
    """Path in the repository -> path in the site, of all pages and pictures."""
    inside = [path for pattern in ("*.md", "*.css") for path in (ROOT / "docs").glob(pattern)]
    outside = [ROOT / name for name in OUTSIDE]
    found = [*inside, *outside, *ROOT.glob(STUDIES), *ROOT.glob(PICTURES)]
    names = [path.relative_to(ROOT).as_posix() for path in sorted(found) if path.is_file()]
    return {name: MOVED.get(name, name.removeprefix("docs/")) for name in names}


def relinked(markdown: str, page: str, pages: dict[str, str]) -> str:
    """The text of the repository's `page` with links as the site has them."""
    here = posixpath.dirname(pages[page])

    def link(match: re.Match) -> str:
        target, mark, anchor = match[0].partition("#")
        if re.match(r"[a-z]+:", target) or not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        found = next((pages[name] for name in (path, f"{path}/README.md") if name in pages), None)
        if found:
            return posixpath.relpath(found, here or ".") + mark + anchor
        if not (ROOT / path).exists():
            return match[0]  # mkdocs will say that it leads nowhere
        return f"{REPOSITORY}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}{mark}{anchor}"

    parts = CODE.split(markdown)  # every second one is code
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


def fields_page() -> str:
    """The page of every field of a config."""
    from transfusion.config import Experiment
    from transfusion.config.describe import sections

    lines = [
        "# Every field of a config",
        "",
        "A config file returns an `Experiment`, and `--config.PATH.FIELD=VALUE` overrides any field on the command "
        "line. `NAME` stands for a name of your own, and `[]` for an entry of a list. This page is made from the "
        "classes.",
    ]
    for section in sections(Experiment):
        where = f"`--config.{section.path}.`" if section.path else "`--config.`"
        module = section.kind.__module__
        lines += ["", f"## {section.path or 'experiment'}", "", f"{where} · `{module}.{section.kind.__qualname__}`", ""]
        lines += [relinked_says(section.says), "", "| field | type | default | meaning |", "|---|---|---|---|"]
        for field in section.fields:
            cells = (f"`{field.name}`", f"`{field.type}`", f"`{field.default}`" if field.default else "", field.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def relinked_says(says: str) -> str:
    """A docstring as Markdown: lists begin after an empty line."""
    return re.sub(r"(?<=[^\n])\n(?=- )", "\n\n", re.sub(r"\n(?!- )(?=\S)", " ", says).replace("  ", "\n\n"))


def modules(package: pathlib.Path) -> Iterator[str]:
    """The dotted names of the modules of a package, itself first."""
    name = package.relative_to(ROOT).as_posix().replace("/", ".")
    yield name
    for path in sorted(package.glob("*.py")):
        if path.stem not in ("__init__", "__main__"):
            yield f"{name}.{path.stem}"


def packages() -> list[pathlib.Path]:
    """The folders of the library that Python imports, in the order of their names."""
    return sorted(path.parent for path in (ROOT / "transfusion").rglob("__init__.py"))


def reference_pages() -> dict[str, str]:
    """Path in the site -> the page of a package's modules."""
    found = {}
    for package in packages():
        first, *others = modules(package)
        text = [f"# {first}", "", f"::: {first}", "    options: {show_root_heading: false, members: false}"]
        for name in others:
            text += ["", f"::: {name}"]
        found[f"reference/{first}.md"] = "\n".join(text) + "\n"
    return found


def on_config(config):
    """Adds to `nav` the pages that it does not name, the studies and the reference."""
    named = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    others = [uri for uri in site_pages().values() if uri.endswith(".md") and uri not in named]
    studies = [uri for uri in others if uri.startswith("experiments/")]
    more = [uri for uri in others if uri not in studies]
    known = {*site_pages().values(), *reference_pages(), GENERATED}
    config.nav = [_known(entry, known) for entry in config.nav]
    config.nav += [{"More": more}] * bool(more) + [{"Studies": studies}]
    config.nav += [{"Reference": [{uri[len("reference/") : -len(".md")]: uri} for uri in reference_pages()]}]
    return config


def _known(entry, known):
    """An entry of `nav` without the pages that this tree lacks."""
    if isinstance(entry, dict):
        return {title: _known(value, known) for title, value in entry.items()}
    return [one for one in entry if one in known] if isinstance(entry, list) else entry


def on_files(files, config):
    """Gives mkdocs the pages that do not lie in docs/ under their name in the site."""
    files.remove(files.get_file_from_path("README.md"))  # in the site that is the front page of the repository
    for name, uri in site_pages().items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    for uri, text in (reference_pages() | {GENERATED: fields_page()}).items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads the links of a page of the repository to where their targets are in the site."""
    pages = site_pages()
    name = {uri: name for name, uri in pages.items()}.get(page.file.src_uri)
    return relinked(markdown, name, pages) if name else markdown
