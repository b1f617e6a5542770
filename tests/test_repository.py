"""What belongs to the repository and to no module: workflows, templates, citation."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gaunt_plugin

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow):
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job.get("steps", [])]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(workflow):
    help_text = subprocess.run(
        [sys.executable, "tests/run.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = steps(workflow)
    assert found
    for step in found:
        if "uses" in step:
            assert re.search(r"@(v\d|release/v\d)", step["uses"]), step
        elif "tests/run.py" in step["run"]:
            for option in re.findall(r" (--[a-z]+)", step["run"]):
                assert option in help_text, step
    if shutil.which("actionlint"):  # the workflow "tests" always has it
        subprocess.run(["actionlint", str(workflow)], cwd=ROOT, check=True)


def test_only_the_job_that_publishes_gets_a_token():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    rights = {name: job.get("permissions") for name, job in workflow["jobs"].items()}
    assert {name: right for name, right in rights.items() if right} == {
        "publish": {"id-token": "write"}
    }
    publish = workflow["jobs"]["publish"]
    assert publish["if"] == "github.ref_type == 'tag'"
    assert set(publish["needs"]) == workflow["jobs"].keys() - {"publish"}


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_forms_ask_for_the_installation(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert form.keys() >= {"name", "description", "body"}
    (info,) = (part for part in form["body"] if part.get("id") == "info")
    assert "gaunt info" in info["attributes"]["label"]
    assert name != "bug" or info["validations"] == {"required": True}


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gaunt_plugin.__version__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Luo",
        "Chen",
        "Krishnapriyan",
    ]
    assert paper["year"] == 2024
