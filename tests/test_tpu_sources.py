"""tpu_setup/: what is sent to the machines, and what is not; variables, keys, and values that cannot be."""

import os
import re
import shlex
import stat

import pytest
from test_tpu_setup import GKE, ROOT, SLURM, TPU, TRAIN, Cloud, job

KEY = 's3cr\'et $(x) "y"'


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    (cloud.repository / ".gitignore").write_text("ignored/\n*.key\n")
    (cloud.repository / "ignored").mkdir()
    (cloud.repository / "ignored/c.py").write_text("")
    cloud.git("add", ".")
    cloud.git("-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "--quiet", "-m", "ignore")
    cloud.set(queue={"run": "ACTIVE"})
    yield cloud
    cloud.close()


def sent(cloud):
    (source,) = cloud.fake.glob("machines/0-0/transfusion/run/src-*")
    return source


def test_only_the_commit_is_sent(cloud):
    """Uncommitted changes are refused; with --allow-dirty all goes as it is, but for what git ignores."""
    (cloud.repository / "configs/mine.py").write_text("new = 1")
    (cloud.repository / "my.key").write_text("secret")
    (cloud.repository / "configs/c.py").write_text("changed = 1")
    (cloud.repository / "tpu_setup/README.md").unlink()
    before = cloud.git("status", "--porcelain")
    out = cloud.run("tpu.sh", "install", *TPU, code=2)
    assert "uncommitted changes (configs/c.py, tpu_setup/README.md, configs/mine.py): commit" in out
    assert out.count("\n") == 1
    assert "sends new files, too: configs/mine.py\n" in cloud.run("tpu.sh", "install", *TPU, "--allow-dirty")
    source = sent(cloud)
    assert source.name.startswith("src-dirty-")
    assert (source / "configs/c.py").read_text() == "changed = 1"
    assert (source / "configs/mine.py").read_text() == "new = 1"
    assert not any((source / name).exists() for name in ("my.key", "ignored", "tpu_setup/README.md"))
    assert not list(cloud.fake.glob("machines/0-0/*.tar.gz"))
    assert cloud.git("status", "--porcelain") == before and cloud.git("stash", "list") == ""


def test_new_files_that_are_no_source_code_are_refused(cloud):
    with open(cloud.repository / "configs/big", "wb") as file:
        for _ in range(101):
            file.write(os.urandom(2**20))
    out = cloud.run("tpu.sh", "install", *TPU, "--allow-dirty", code=2)
    assert "new files of 101 MiB would be sent (configs/big)" in out and out.count("\n") == 1


@pytest.mark.parametrize("named", ["/elsewhere/mine.py", "../elsewhere/mine.py", "configs/link.py"])
def test_a_config_and_a_script_from_outside_go_along(cloud, named, tmp_path):
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "mine.py").write_text("mine = 1")
    (outside / "set up.sh").write_text("")
    (outside / "setup.sh").write_text("touch prepared\n")
    flags = ["--allow-dirty"] if named == "configs/link.py" else []
    if flags:
        (cloud.repository / named).symlink_to(outside / "mine.py")
    named = named.replace("/elsewhere", str(outside), named.startswith("/"))
    cloud.set(training=["done"])
    flags += [*TPU, f"--setup={outside}/setup.sh", f"--config={named}:form", TRAIN[1]]
    cloud.run("tpu.sh", "launch", *flags)
    source = sent(cloud)
    assert (source / "sent-along/config/mine.py").read_text() == "mine = 1" and (source / "prepared").exists()
    assert (source / "configs/c.py").exists()
    assert cloud.calls("worker.sh start", "--config sent-along/config/mine.py:form")
    if "link" not in named:
        assert cloud.git("status", "--porcelain") == ""
    # What has changed is another source, and is installed anew.
    (outside / "mine.py").write_text("mine = 2")
    cloud.run("tpu.sh", "stop", *TPU)
    cloud.run("tpu.sh", "launch", *flags)
    assert len(list(cloud.fake.glob("machines/0-0/transfusion/run/src-*-with-*"))) == 2
    out = cloud.run("tpu.sh", "launch", *flags, f"--setup={outside}/set up.sh", code=2)
    assert "'set up.sh' can only go along under a name of" in out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--config=configs/none.py"], "there is no configs/none.py in"),
        (["--config=../none.py"], "there is no ../none.py in"),
        (["--config=configs"], "there is no configs in"),
        (["--config=ignored/c.py"], "ignored/c.py would not be sent, as git ignores it"),
        (["--config=.git/config"], ".git/config would not be sent"),
        (["--setup=none.sh"], "there is no none.sh in"),
        (["--setup=ignored/c.py"], "would not be sent"),
        (["--env=1A=b"], "--env cannot be '1A=b'"),
        (["--env=A-B=c"], "--env cannot be 'A-B=c'"),
        (["--env==b"], "--env cannot be '=b'"),
        (["--env="], "--env needs a value"),
        (["--env-file=none"], "there is no file none that can be read"),
        (["--slices=08"], "--slices cannot be '08'"),
        (["--slices=99999999999999999999"], "--slices cannot be"),
        (["--retry-seconds=09"], "--retry-seconds cannot be '09'"),
        (["--poll=-1"], "--poll cannot be"),
    ],
)
def test_mistakes_are_one_line(cloud, flags, says):
    out = cloud.run("tpu.sh", "up", *TPU, *TRAIN, *flags, code=2)
    assert out.startswith("error: ") and says in out and out.count("\n") == 1
    assert not cloud.calls("create") and not cloud.calls("scp")


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ENV", "A=b\nA-B=c", "--env cannot be 'A-B=c'"),
        ("ENV", "A=b\n-c=d", "--env cannot be '-c=d'"),
        ("ENV", "A=b\n\nC=d", "--env has an empty line"),
        ("SSH_OPTION", "--ok\nrm -rf", "--ssh-option cannot be 'rm -rf'"),
        ("CREATE_OPTION", "x", "--create-option cannot be 'x'"),
        ("CONFIG", "configs/c.py\nx", "--config holds a line break"),
        ("SETUP", "-x", "--setup cannot be '-x'"),
        ("POLL", "1\n2", "--poll holds a line break"),
    ],
)
def test_what_comes_from_the_environment_is_checked_as_well(cloud, variable, value, says):
    flags = [*TPU[:-1], TRAIN[1], *([] if variable == "CONFIG" else TRAIN[:1])]
    out = cloud.run("tpu.sh", "up", *flags, code=2, **{f"TRANSFUSION_{variable}": value})
    assert out.startswith("error: ") and says in out and out.count("\n") == 1


def test_good_values_from_the_environment_are_taken(cloud):
    cloud.set(training=["done"])
    cloud.run("tpu.sh", "launch", *TPU, *TRAIN, TRANSFUSION_ENV="A_1=b c\nLIBTPU_INIT_ARGS=--x=1")
    assert cloud.trained()["0-0"][0].startswith("tpu,cpu --x=1 -m transfusion.train")


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys.env"
    path.write_text(f"# keys\n\nLIBTPU_INIT_ARGS={KEY}\nOTHER=1")
    return path


def test_keys_go_to_workers_as_a_file_that_nobody_else_reads(cloud, keys):
    cloud.set(training=["done"], shape="1 2 2 READY")
    cloud.run("tpu.sh", "launch", *TPU, *TRAIN, f"--env-file={keys}", "--env=OTHER_TOO=2")
    for worker in ("0-0", "0-1"):
        assert cloud.trained()[worker][0].startswith(f"tpu,cpu {KEY} -m transfusion.train")
        there = cloud.fake / f"machines/{worker}/transfusion/run/env"
        assert stat.S_IMODE(there.stat().st_mode) == 0o600
        assert there.read_text() == f"LIBTPU_INIT_ARGS={KEY}\nOTHER=1\n"
        assert "s3cr" not in (there.parent / "worker.log").read_text()
    assert cloud.calls("@env") and not cloud.calls("s3cr")


def test_keys_go_to_slurm_by_the_input_and_to_gke_as_a_file(cloud, keys):
    folder = f"--folder={cloud.fake}/shared"
    cloud.run("slurm.sh", "up", *SLURM, folder, *TRAIN, f"--env-file={keys}")
    there = cloud.fake / "shared/run/env"
    assert there.read_text() == f"LIBTPU_INIT_ARGS={KEY}\nOTHER=1\n" and stat.S_IMODE(there.stat().st_mode) == 0o600
    assert "@env" in cloud.calls("sbatch --parsable")[-1]
    out = cloud.run("gke.sh", "up", *GKE, *TRAIN, f"--env-file={keys}", code=2)
    assert "xpk takes no value with a double quote" in out and "s3cr" not in out
    assert "xpk takes no value" in cloud.run("gke.sh", "up", *GKE, *TRAIN, '--env=A=b" c', code=2)
    keys.write_text("A=b\n")
    cloud.run("gke.sh", "up", *GKE, *TRAIN, f"--env-file={keys}")
    assert any(word.startswith("--env-file=") for word in cloud.calls("xpk workload create")[-1])
    assert not cloud.calls("s3cr")


def test_the_job_of_slurm_reads_the_file(cloud):
    cloud.set(training=["done"])
    (cloud.fake / "job").mkdir()
    (cloud.fake / "job/env").write_text(f"LIBTPU_INIT_ARGS={KEY}\n")
    process = job(cloud, "@env")
    assert process.wait(60) == 0
    assert cloud.trained()["node"][0].startswith(f"cuda,cpu {KEY} -m transfusion.train")
    assert not cloud.calls("s3cr")


@pytest.mark.parametrize("line", ["s3cret", "export S3CRET=s3cret", "A B=s3cret", "1A=s3cret", "A=s3cret\r"])
def test_a_wrong_line_of_keys_is_named_and_not_shown(cloud, keys, line):
    keys.write_bytes(f"A=b\n{line}\n".encode())
    out = cloud.run("tpu.sh", "launch", *TPU, *TRAIN, f"--env-file={keys}", code=2)
    assert f"line 2 of {keys} is not NAME=VALUE" in out and "s3cret" not in out.lower().replace(str(keys), "")


def test_keys_that_would_go_with_the_source_code_are_refused(cloud):
    path = cloud.repository / "keys.env"
    path.write_text("A=b\n")
    flags = [*TPU, *TRAIN, f"--env-file={path}"]
    assert "keys.env would be sent with the source code" in cloud.run(
        "tpu.sh", "launch", *flags, "--allow-dirty", code=2
    )
    path.rename(cloud.repository / "my.key")  # which git ignores
    cloud.set(training=["done"])
    cloud.run("tpu.sh", "launch", *TPU, *TRAIN, f"--env-file={cloud.repository}/my.key")


# --- the README -------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_readme_run_dry(cloud):
    (cloud.repository / "configs/digits.py").write_text("")
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "tpu_setup/README.md").read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    assert len(commands) > 5
    for command in commands:
        program, name, *flags = shlex.split(command)
        assert program.startswith("tpu_setup/")
        flags = [flag for flag in flags if flag not in ("--dry-run", "--allow-dirty")]
        out = cloud.run(program.removeprefix("tpu_setup/"), name, "--dry-run", "--allow-dirty", *flags)
        assert out and cloud.calls() == []
