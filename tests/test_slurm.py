"""The Slurm script, run with stand-ins for `srun` and `scontrol`: what it launches, and how it ends.

There is no cluster here, so the two cluster commands on PATH are short shell scripts: `scontrol` names two nodes,
`srun` runs its command once per node as Slurm does, and `accelerate` writes down its arguments.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "slurm" / "train.slurm"

SCONTROL = """#!/bin/bash
echo "$@" >>"$LOG/scontrol"
[[ $1 == show ]] && printf 'alpha\\nbeta\\n'
exit 0
"""
SRUN = """#!/bin/bash
last=1
for word in "$@"; do [[ $word == --nodes=* ]] && last=$((${word#*=} - 1)); done
[[ " $* " == *" --nodelist="* ]] && printf '%s\\n' "$@" >"$LOG/teacher" || printf '%s\\n' "$@" >"$LOG/srun"
while [[ $1 == --* ]]; do shift; done
for node in $(seq 0 $last); do SLURM_NODEID=$node "$@" || exit $?; done
"""
ACCELERATE = """#!/bin/bash
printf '%s\\n' "$@" >"$LOG/node-$SLURM_NODEID"
echo "$OMP_NUM_THREADS" >"$LOG/threads"
eval "${BEHAVIOUR:-true}"
"""

PYTHON = """#!/bin/bash
echo "$@" >>"$LOG/python"
[[ -z ${NO_CUDA:-} ]] || { echo "error: CUDA cannot be used" >&2; exit 1; }
"""

CURL = """#!/bin/bash
echo "${@: -1}" >>"$LOG/curl"
[[ $(wc -l <"$LOG/curl") -ge 2 ]]
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script needs of a checkout, and the stand-ins."""
    folder = tmp_path / "check out"  # a path with a space in it
    stand_ins = {
        "bin/scontrol": SCONTROL, "bin/srun": SRUN, "bin/curl": CURL, ".venv/bin/accelerate": ACCELERATE,
        ".venv/bin/python": PYTHON,
    }  # fmt: skip
    for name, text in stand_ins.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    for name in ("scripts/run_vopd.py", "mine.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    shutil.copytree(ROOT / "recipes" / "accelerate_configs", folder / "recipes" / "accelerate_configs")
    (folder / "log").mkdir()
    return folder


@pytest.fixture
def submit(checkout: Path) -> Run:
    """Run the script as Slurm's batch shell would; `LOG` collects what was called."""

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "nodes[1-2]", "SLURM_NNODES": "2"}
        environment = {
            "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
            "LOG": str(checkout / "log"),
            "SLURM_SUBMIT_DIR": str(checkout),
            "SLURM_CPUS_PER_TASK": "64",
            **job,
            **variables,
        }
        return subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=30)

    return run


def test_bash_reads_it() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0


def test_every_node_starts_one_launcher_of_one_run(submit: Run, checkout: Path) -> None:
    done = submit("mine.yaml", "--learning_rate", "1e-6", "--output_dir", "runs/a b")
    assert done.returncode == 0, done.stderr
    launches = [(checkout / "log" / f"node-{node}").read_text().split("\n")[:-1] for node in (0, 1)]
    for node, launch in enumerate(launches):
        assert launch == [
            "launch",
            *("--config_file", "recipes/accelerate_configs/zero2.yaml"),
            *("--num_machines", "2", "--num_processes", "16", "--machine_rank", str(node)),
            *("--main_process_ip", "alpha", "--main_process_port", str(20000 + 4711), "--rdzv_backend", "static"),
            *("scripts/run_vopd.py", "mine.yaml", "--learning_rate", "1e-6", "--output_dir", "runs/a b"),
        ]


def test_variables_choose_the_layout(submit: Run, checkout: Path) -> None:
    variables = {"ACCELERATE_CONFIG": "recipes/accelerate_configs/zero3.yaml", "GPUS_PER_NODE": "4", "PORT": "29500"}
    assert submit("mine.yaml", **variables).returncode == 0
    launch = (checkout / "log" / "node-0").read_text().split("\n")
    assert launch[launch.index("--config_file") + 1] == "recipes/accelerate_configs/zero3.yaml"
    assert launch[launch.index("--num_processes") + 1] == "8"
    assert launch[launch.index("--main_process_port") + 1] == "29500"


@pytest.mark.parametrize(("cores", "given", "threads"), [("64", "64", "8"), ("4", "4", "1"), ("", "8", "1")])
def test_every_launcher_has_the_nodes_cores(submit: Run, checkout: Path, cores: str, given: str, threads: str) -> None:
    """From Slurm 22.05 on srun does not read them from the job, and would give its task a single core."""
    assert submit("mine.yaml", SLURM_CPUS_PER_TASK=cores).returncode == 0
    flags = (checkout / "log" / "srun").read_text().split("\n")
    assert flags[flags.index("bash") - 3 : flags.index("bash")] == [
        *("--ntasks-per-node=1", f"--cpus-per-task={given}", "--kill-on-bad-exit=1")
    ]
    assert (checkout / "log" / "threads").read_text().strip() == threads


def test_the_last_node_serves_the_teacher_and_the_others_train(submit: Run, checkout: Path) -> None:
    """Nine seconds: the script asks every five whether the server is there."""
    done = submit("mine.yaml", TEACHER_SERVER="sleep 8;", TEACHER_PORT="9001")
    assert done.returncode == 0, done.stderr
    served = (checkout / "log" / "teacher").read_text().split("\n")
    assert {"--nodes=1", "--nodelist=beta"} < set(served) and "exec sleep 8; --port 9001" in served
    asked = (checkout / "log" / "curl").read_text().split()
    assert asked == ["http://beta:9001/v1/models"] * 2  # it was not there at first
    launch = (checkout / "log" / "node-0").read_text().split("\n")
    assert launch[launch.index("--num_machines") + 1 : launch.index("--num_machines") + 4 : 2] == ["1", "8"]
    assert launch[-3:-1] == ["--teacher_server_url", "http://beta:9001"]
    assert {"--nodes=1", "--exclude=beta"} < set((checkout / "log" / "srun").read_text().split("\n"))
    assert not (checkout / "log" / "node-1").exists()


def test_a_teacher_that_ends_is_not_waited_for(submit: Run, checkout: Path) -> None:
    (checkout / "bin" / "curl").write_text("#!/bin/bash\nexit 7\n")
    done = submit("mine.yaml", TEACHER_SERVER="false;")
    assert done.returncode == 2 and "the teacher's server has ended" in done.stderr
    assert not list((checkout / "log").glob("node-*"))


def test_a_failure_is_passed_on_and_not_requeued(submit: Run, checkout: Path) -> None:
    done = submit("mine.yaml", BEHAVIOUR="exit 3")
    assert done.returncode == 3
    assert "training ended with status 3" in done.stderr
    assert "requeue" not in (checkout / "log" / "scontrol").read_text()


def test_the_signal_before_the_time_limit_requeues_the_job_once(submit: Run, checkout: Path) -> None:
    """The launcher signals the batch shell, its grandparent, and ends as Slurm ends the steps of a requeued job."""
    signalled = "[[ $SLURM_NODEID == 1 ]] || { kill -USR1 $(ps -o ppid= -p $PPID); sleep 1; exit 143; }"
    done = submit("mine.yaml", BEHAVIOUR=signalled)
    assert done.returncode == 143, done.stderr
    assert (checkout / "log" / "scontrol").read_text().count("requeue 4711") == 1
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        ([], {}, "no recipe"),
        (["absent.yaml"], {}, "no such recipe: absent.yaml"),
        (["mine.yaml"], {"SLURM_JOB_ID": ""}, "sbatch --nodes=N"),
        (["mine.yaml"], {"ACCELERATE_CONFIG": "absent.yaml"}, "ACCELERATE_CONFIG: no such file"),
        (["mine.yaml"], {"GPUS_PER_NODE": "eight"}, "GPUS_PER_NODE must be a whole number"),
        (["mine.yaml"], {"TEACHER_SERVER": "vllm serve x", "SLURM_NNODES": "1"}, "takes a node of its own"),
        (["mine.yaml"], {"VENV": "absent"}, "no accelerate in absent/bin"),
        (["mine.yaml"], {"NO_CUDA": "1"}, "CUDA cannot be used"),
        (["mine.yaml"], {"SLURM_SUBMIT_DIR": "/"}, "not the checkout"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    submit: Run, checkout: Path, words: list[str], variables: dict[str, str], message: str
) -> None:
    done = submit(*words, **variables)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list((checkout / "log").glob("node-*"))
