"""tpu_setup/ against stand-ins of the clouds' programs, whose machines run worker.sh (fake_cloud.sh)."""

import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = shlex.split("gcloud xpk kubectl uv srun sbatch squeue scancel scontrol ssh gcsfuse mountpoint hostname tail")
TRAIN = ["--config=configs/c.py:form", "--workdir=gs://bucket/w"]
TPU = shlex.split("--name=run --project=my-project --zone=us-central2-b --type=v5litepod-16 --retry-seconds=0 --poll=0")
GKE = [*TPU[:5], "--cluster=pods"]
SLURM = ["--name=run", "--login=me@login.example.org", "--folder=/shared", "--retry-seconds=0"]


class Cloud:
    """A repository with tpu_setup/, and a folder of stand-ins on PATH."""

    def __init__(self, folder: pathlib.Path):
        self.fake, self.repository, programs = folder / "fake", folder / "repository", folder / "bin"
        for path in (self.fake, self.repository / "configs", programs):
            path.mkdir(parents=True)
        for name in PROGRAMS:
            (programs / name).symlink_to(ROOT / "tests/fake_cloud.sh")
        shutil.copytree(ROOT / "tpu_setup", self.repository / "tpu_setup")
        (self.repository / "configs/c.py").write_text("")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFUSION_")}
        self.environment = {**clean, "PATH": f"{programs}:{os.environ['PATH']}", "FAKE": str(self.fake)}
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "--quiet", "-m", "all")

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(self.repository), *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    def run(self, program: str, *arguments: str, code: int = 0, **environment: str) -> str:
        """Its output, and its errors where it fails as it should."""
        command = ["bash", str(self.repository / "tpu_setup" / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=self.environment | environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr if code else done.stdout

    def set(self, **files: object) -> None:
        """Files of $FAKE (see there); a dict is a folder of them, a list the lines of one."""
        for name, value in files.items():
            for path, lines in {name: value}.items() if not isinstance(value, dict) else value.items():
                target = self.fake / (name if value is lines else f"{name}/{path}")
                target.parent.mkdir(exist_ok=True)
                target.write_text("".join(f"{line}\n" for line in (lines if isinstance(lines, list) else [lines])))

    def calls(self, *parts: str) -> list[list[str]]:
        """Those so far that contain all parts."""
        path = self.fake / "calls"
        calls = [line.split("\x1f")[:-1] for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if all(part in " ".join(call) for part in parts)]

    def trained(self) -> dict[str, list[str]]:
        """What the training was called with on each machine, once per attempt."""
        return {
            path.name.removeprefix("trained-"): path.read_text().splitlines() for path in self.fake.glob("trained-*")
        }

    def close(self) -> None:
        for pid in self.fake.glob("machines/*/transfusion/*/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.close()


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    files = sorted(str(path) for path in (ROOT / "tpu_setup").iterdir() if path.suffix in (".sh", ".sbatch"))
    done = subprocess.run(["shellcheck", "-x", *files], capture_output=True, text=True, cwd=ROOT)
    assert len(files) == 6 and done.returncode == 0, done.stdout


# --- TPU slices -------------------------------------------------------------------------------------------------------


def test_preempted_multislice_is_created_anew_and_continues(cloud):
    """Two slices of two workers; the first request is preempted in mid-training, and `up` brings it to its end."""
    lives = {
        "1": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED"],
        "2": ["WAITING_FOR_RESOURCES", "ACTIVE"],
    }
    cloud.set(shape="2 2 2 READY", lives=lives, training=["sleep", "done"])
    flags = [*TPU, "--slices=2", "--spot", "--env=LIBTPU_INIT_ARGS=--a=1 --b", "--delete-when-done"]
    out = cloud.run("tpu.sh", "up", *flags, *TRAIN, "--", "--config.steps=7", "--config.name=it's $(touch x) *")
    create = cloud.calls("queued-resources create")
    expected = "gcloud compute tpus queued-resources create run --project=my-project --zone=us-central2-b"
    expected += " --runtime-version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-16"
    assert create == [shlex.split(expected + " --node-count=2 --node-prefix=run-slice --spot")] * 2
    once = "tpu,cpu --a=1 --b -m transfusion.train --config configs/c.py:form --workdir gs://bucket/w"
    once += " --config.steps=7 --config.name=it's $(touch x) *"
    assert cloud.trained() == {host: [once, once] for host in ("0-0", "0-1", "1-0", "1-1")}
    assert len(cloud.calls("queued-resources delete", "--force")) == 2 and "is preempted" in out
    assert out.splitlines()[-2:] == ["run is done", "run is deleted"]


def test_a_slice_that_is_lost_while_its_request_is_active_is_created_anew(cloud):
    cloud.set(queue={"run": "ACTIVE"}, shape="1 1 1 PREEMPTED", fails={"queued-resources create": 99})
    out = cloud.run("tpu.sh", "up", *TPU, *TRAIN, "--max-failures=2", code=1)
    assert "run is preempted" in out and "the slices cannot be requested (failure 2 of 2)" in out
    assert len(cloud.calls("queued-resources delete")) == 1 and not cloud.calls("worker.sh start")


def test_launch_refuses_a_second_training_and_resume_starts_one_only_if_needed(cloud):
    cloud.set(shape="1 2 2 READY", queue={"run": "ACTIVE"}, training=["sleep", "sleep"])
    cloud.run("tpu.sh", "launch", *TPU, *TRAIN)
    assert "is RUNNING on its workers" in cloud.run("tpu.sh", "launch", *TPU, *TRAIN, code=1)
    assert cloud.run("tpu.sh", "resume", *TPU, *TRAIN) == "run runs already\n"
    assert cloud.run("tpu.sh", "status", *TPU).splitlines() == [
        "request: ACTIVE",
        "slices: READY; workers: 2 of 2 answered; training: RUNNING",
    ]
    assert len(cloud.trained()["0-0"]) == 1
    # One worker's training is killed: no worker can go on, and all are started anew.
    os.killpg(int((cloud.fake / "machines/0-1/transfusion/run/pid").read_text()), signal.SIGKILL)
    assert "training: FAILED" in cloud.run("tpu.sh", "status", *TPU)
    cloud.run("tpu.sh", "resume", *TPU, *TRAIN)
    cloud.run("tpu.sh", "stop", *TPU)
    assert "training: STOPPED" in cloud.run("tpu.sh", "status", *TPU)
    assert {host: len(calls) for host, calls in cloud.trained().items()} == {"0-0": 2, "0-1": 2}
    assert len(cloud.calls("uv venv")) == 2  # one commit is installed once per worker
    assert "starts on 0-1: JAX_PLATFORMS=tpu,cpu -- --config" in cloud.run("tpu.sh", "tail", *TPU, "--worker=1")


def test_crashes_in_a_row_are_given_up_with_the_log(cloud):
    cloud.set(training=["crash"] * 9)
    out = cloud.run("tpu.sh", "up", *TPU, *TRAIN, "--max-failures=3", code=1)
    assert "RuntimeError: out of luck" in out and "FAILED with code 1, 3 times" in out.splitlines()[-1]
    assert len(cloud.trained()["0-0"]) == 3


def test_what_is_there_is_not_created_and_what_is_not_is_not_deleted(cloud):
    assert cloud.run("tpu.sh", "delete", *TPU) == "run does not exist\n"
    cloud.set(fails={"queued-resources list": 2, "queued-resources create": 4})
    cloud.run("tpu.sh", "create", *TPU)
    assert cloud.run("tpu.sh", "create", *TPU) == "run exists already: ACTIVE\n"
    assert len(cloud.calls("queued-resources create")) == 5  # four failed, and were tried again
    cloud.run("tpu.sh", "delete", *TPU)
    assert cloud.run("tpu.sh", "delete", *TPU) == "run does not exist\n"
    assert "run is ABSENT" in cloud.run("tpu.sh", "launch", *TPU, *TRAIN, code=1)


def test_a_worker_that_does_not_answer_is_no_success(cloud):
    cloud.set(shape="1 2 1 READY", queue={"run": "ACTIVE"})
    assert "1 of 2 workers answered" in cloud.run("tpu.sh", "install", *TPU, code=1)
    assert "1 of 2 workers answered" in cloud.run("tpu.sh", "launch", *TPU, *TRAIN, code=1)


def test_bucket_is_mounted_into_the_source_folder_of_all_workers(cloud):
    cloud.set(shape="1 2 2 READY", queue={"run": "ACTIVE"}, training=["done"], fails={"mountpoint": 2, "uv pip": 1})
    flags = [*TPU, "--bucket=my-bucket", TRAIN[0], "--workdir=bucket/w"]
    cloud.run("tpu.sh", "launch", *flags)
    assert [call[1:3] for call in cloud.calls("gcsfuse")] == [["--implicit-dirs", "my-bucket"]] * 2
    assert next(cloud.fake.glob("machines/0-1/transfusion/run/src-*/bucket")).is_dir()
    assert len(cloud.calls("uv venv")) == 3  # one worker's installation failed, and alone was tried again


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--spott"], "there is no flag --spott; known: --dry-run"),
        (["--zone=mars"], "--zone cannot be 'mars': such as us-central2-b"),
        (["--project=P"], "--project cannot be 'P'"),
        (["--name=run; rm -rf /"], "--name cannot be"),
        (["--type=v9-8"], "no generation 'v9' here; known:"),
        (["--workdir=runs/w"], "would be lost with the machine"),
        (["--config=configs/none.py"], "there is no configs/none.py"),
        (["--spot", "--best-effort"], "exclude each other"),
        (["--env=novalue"], "--env cannot be"),
        (["--env=WANDB_API_KEY=abc"], "--env=WANDB_API_KEY=...: others can read command lines"),
        (["run"], "unexpected argument 'run'"),
        (["--zone"], "--zone needs a value"),
        (["--zone="], "--zone is missing"),
    ],
)
def test_mistakes_are_one_line(cloud, flags, says):
    out = cloud.run("tpu.sh", "up", *TPU, *TRAIN, *flags, code=2)
    assert out.startswith("error: ") and says in out and out.count("\n") == 1
    assert not cloud.calls("create")


@pytest.mark.parametrize(
    ("program", "flags", "expected"),
    [
        ("tpu.sh", TPU, ["list", "create", "list", "scp", "install", "start", "status"]),
        ("gke.sh", GKE, ["list", "cluster create", "get-credentials", "jobset", "workload create"]),
        ("slurm.sh", SLURM, ["squeue", "tar", "mkdir", "sbatch"]),
    ],
)
def test_dry_run_prints_and_calls_nothing(cloud, program, flags, expected):
    """In the order in which they would run, quoted so that a shell reads the same words."""
    odd = "--config.name=it's $(touch x) *"
    lines = cloud.run(program, "up", *flags, *TRAIN, "--dry-run", "--", odd).splitlines()
    assert cloud.calls() == []
    at = -1
    for part in expected:
        at = next(i for i, line in enumerate(lines) if i > at and part in line)
    last = next(line for line in lines if "touch" in line)
    words = shlex.split(last)
    while odd not in words:  # a command within a command
        words = shlex.split(next(word for word in words if "touch" in word))
    assert words[words.index("--workdir") + 1] == "gs://bucket/w"


def test_flags_come_from_the_environment_too(cloud):
    out = cloud.run("tpu.sh", "create", *TPU[:3], "--dry-run", TRANSFUSION_SPOT="true", TRANSFUSION_TYPE="v5p:8x8x8")
    assert "gcloud alpha compute tpus queued-resources create run --project=my-project" in out
    assert "--runtime-version=v2-alpha-tpuv5 --type=v5p --topology=8x8x8 --node-id=run --spot" in out
    assert "--zone cannot be 'mars'" in cloud.run("tpu.sh", "create", *TPU[:2], TRANSFUSION_ZONE="mars", code=2)


# --- GKE and Slurm ----------------------------------------------------------------------------------------------------


def test_gke_submits_once_and_again_after_a_failure(cloud):
    flags = [*GKE, *TRAIN, "--slices=2", "--spot", "--launch-option=--priority=high"]
    cloud.run("gke.sh", "up", *flags, "--", "--config.steps=7")
    (create,) = cloud.calls("xpk cluster create")
    expected = "--project=my-project --zone=us-central2-b --cluster=pods --tpu-type=v5litepod-16 --num-slices=2 --spot"
    assert create[3:] == shlex.split(expected)
    assert cloud.calls("get-credentials pods --project=my-project --location=us-central2")
    (submit,) = cloud.calls("xpk workload create")
    assert {"--workload=run", "--max-restarts=100", "--restart-on-exit-codes=1", "--priority=high"} < set(submit)
    assert submit[-1] == (
        "--command=exec bash tpu_setup/worker.sh here tpu -- --config configs/c.py:form --workdir gs://bucket/w "
        "--config.steps=7"
    )
    assert (cloud.fake / "sent").read_text().split() == ["configs", "tpu_setup"]
    assert "runs or waits already" in cloud.run("gke.sh", "launch", *flags, code=1)
    assert "runs or waits already" in cloud.run("gke.sh", "up", *flags)
    cloud.set(answers={"kubectl": "run Failed"})
    assert "training: Failed" in cloud.run("gke.sh", "status", *GKE)
    cloud.run("gke.sh", "resume", *flags)
    assert len(cloud.calls("xpk workload delete")) == 1 and len(cloud.calls("xpk workload create")) == 2
    cloud.run("gke.sh", "tail", *GKE, "--slice=1", "--worker=3")
    assert "job-index=1,batch.kubernetes.io/job-completion-index=3" in cloud.calls("kubectl logs")[0][-1]
    assert cloud.run("gke.sh", "delete", *GKE).endswith("run is deleted\n")
    assert cloud.run("gke.sh", "delete", *GKE).endswith("run does not exist\n")
    cloud.run("gke.sh", "delete-cluster", *GKE)
    assert cloud.run("gke.sh", "delete-cluster", *GKE) == "pods does not exist\n"


def test_slurm_submits_once(cloud):
    folder = f"--folder={cloud.fake}/shared"
    flags = [*SLURM, folder, *TRAIN, "--nodes=4", "--partition=gpu"]
    cloud.run("slurm.sh", "up", *flags, "--", "--config.steps=7")
    asked, (_, *words) = cloud.calls("sbatch --parsable")
    (source,) = cloud.fake.glob("shared/run/src-*")
    assert asked[:2] == ["ssh", "me@login.example.org"] and (source / ".installed").exists()
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--partition=gpu"} < set(words)
    trained = shlex.split("--config configs/c.py:form --workdir gs://bucket/w --config.steps=7")
    assert words[words.index("--") + 1 :] == trained
    cloud.set(answers={"squeue": "17 RUNNING"})
    assert "run is RUNNING as job 17 already" in cloud.run("slurm.sh", "launch", *flags, code=1)
    assert cloud.run("slurm.sh", "resume", *flags) == "run is RUNNING as job 17 already\n"
    cloud.run("slurm.sh", "delete", *SLURM)
    assert cloud.calls("scancel")[-1] == ["scancel", "17"]
    cloud.set(answers={"squeue": []})
    assert cloud.run("slurm.sh", "delete", *SLURM) == "run does not exist\n"
    assert len(cloud.calls("sbatch --parsable")) == 2


@pytest.mark.parametrize(("act", "codes", "requeued"), [("done", [0], 0), ("crash", [0, 1], 1), ("mistake", [2], 0)])
def test_slurm_job_goes_back_into_the_queue_after_a_crash(cloud, act, codes, requeued):
    cloud.set(training=[act] * 2)
    assert [job(cloud).wait(60) for _ in codes] == codes
    assert len(cloud.calls("scontrol requeue 17")) == requeued


def test_slurm_job_saves_before_its_time_limit_and_goes_back_into_the_queue(cloud):
    """A cancelled one does not."""
    cloud.set(training=["sleep"] * 2)
    for attempt, number in enumerate((signal.SIGUSR1, signal.SIGTERM)):
        process = job(cloud)
        until(lambda attempt=attempt: len(cloud.trained().get("node", [])) > attempt and (cloud.fake / "step").exists())
        process.send_signal(number)
        if number == signal.SIGTERM:  # which Slurm sends to the steps, too
            os.kill(int((cloud.fake / "step").read_text()), number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else 0)
        assert len(cloud.calls("scontrol requeue 17")) == 1
        (cloud.fake / "step").unlink()


def job(cloud, *environment_words: str) -> subprocess.Popen:
    """train.sbatch with two failures at most, as Slurm starts it."""
    folder = cloud.fake / "job"
    python = folder / ".venv/bin/python"
    if not python.exists():
        subprocess.run(["uv", "venv", str(folder / ".venv")], env=cloud.environment, check=True)
    command = ["bash", str(cloud.repository / "tpu_setup/train.sbatch"), str(folder), "2", "A=b"]
    command += [*environment_words, "--", *TRAIN]
    environment = cloud.environment | {"SLURM_JOB_ID": "17", "FAKE_HOST": "node"}
    return subprocess.Popen(command, cwd=folder, env=environment)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
