"""The files that start a run on many machines: shell scripts, a SLURM job, a JobSet for Kubernetes."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lstm_mnist_jax.cli.main import main
from lstm_mnist_jax.training.mesh import OTHER_MIN_EXAMPLES

SCRIPTS = Path(__file__).parents[2] / "scripts"
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue",
          "open-mode"}  # fmt: skip
"""Options of sbatch (its manual page) that the script uses."""


def assert_shell(text):
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    assert_shell(script.read_text("utf-8"))


def test_a_slurm_job_starts_a_process_for_each_gpu():
    text = (SCRIPTS / "slurm.sh").read_text("utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options.keys() == SBATCH
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def test_the_jobset_is_complete_and_its_parts_fit_together():
    account, role, binding, jobset = yaml.safe_load_all((SCRIPTS / "jobset.yaml").read_text("utf-8"))
    kinds = [(part["apiVersion"], part["kind"]) for part in (account, role, binding, jobset)]
    assert kinds == [
        ("v1", "ServiceAccount"),
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding"),
        ("jobset.x-k8s.io/v1alpha2", "JobSet"),
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    # The fields that JobSet has in its API v1alpha2, of those that are used; it would refuse others.
    assert jobset["spec"].keys() == {"failurePolicy", "replicatedJobs"}
    assert jobset["spec"]["failurePolicy"].keys() == {"maxRestarts"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated.keys() == {"name", "template"}
    assert replicated["template"].keys() == {"spec"}
    assert re.fullmatch("[a-z0-9-]+", replicated["name"])
    job = replicated["template"]["spec"]
    assert job["completions"] == job["parallelism"] > 1  # all pods run at the same time
    assert job["completionMode"] == "Indexed"  # JAX reads the index as the number of the process
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")  # what Kubernetes allows in a Job
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["bash", "-c"]
    (program,) = container["args"]
    assert_shell(program)
    (folder,) = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"--run-dir {folder}/" in program
    devices = job["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    (batch_size,) = re.findall(r"--batch-size (\d+)", program)
    assert int(batch_size) == devices * OTHER_MIN_EXAMPLES  # with fewer, not all devices are used


def test_the_options_in_these_files_exist(monkeypatch, capsys):
    files = [path for path in SCRIPTS.iterdir() if path.suffix in (".sh", ".yaml")]
    lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
    trained = [line for line in lines if " tutorial " in line or "--resume" in line]
    options = set(re.findall(r"--[a-z][a-z-]+", " ".join(trained)))
    assert options == {"--batch-size", "--resume", "--run-dir"}
    monkeypatch.setattr("sys.argv", ["lstm-mnist", "train", "--help"])
    with pytest.raises(SystemExit):
        main()
    known = capsys.readouterr().out
    assert [option for option in options if option not in known] == []
