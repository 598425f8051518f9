"""The notebook is well formed, holds no logic of its own, and runs in a kernel on a tiny run."""

import ast
import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.paths import ROOT
from videomar_jax.checks import UserError

NOTEBOOK = ROOT / "notebooks" / "image_to_video.ipynb"


def cells(kind):
    return [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


def test_the_file_is_a_notebook_without_results():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names) and notebook["cells"][0]["cell_type"] == "markdown"
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, (
                "clear the outputs before committing"
            )


def test_cells_are_short_and_define_nothing():
    for code in cells("code"):
        assert len(code.splitlines()) <= 12, code
        for node in ast.walk(ast.parse(code)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef), (
                "logic belongs into the package"
            )


CHECK = """
assert len(longer) == 9 and longer.settings["keep_first"] is False
assert len(set(prompts)) == 4
print("all there")
"""


def test_the_cells_run(finished, tmp_path, monkeypatch):
    """In a kernel of its own, on a tiny run; what a cell shows is in its outputs."""
    monkeypatch.setenv("VIDEOMAR_WORKDIR", str(finished))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "configs").mkdir()  # in place of the project's folder
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("(1, 4, 8), (0.0, 0.7, 1.0)", "(1, 2), (0.5,)")
    notebook.cells.append(nbformat.v4.new_code_cell(CHECK))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    shown = [output["data"] for output in outputs if "data" in output]
    movies = [data["text/html"].count("<video") for data in shown if "text/html" in data]
    expected = "the video, the four prompts, the table of two, the longer and the larger one"
    assert [count for count in movies if count] == [1, 1, 1, 1, 1, 2, 1, 1], expected
    assert any("image/png" in data for data in shown), "frames are shown as they arrive"
    assert "all there" in outputs[-1]["text"]
    assert (tmp_path / "continued.mp4").stat().st_size > 1000


def test_the_first_cell_says_what_it_lacks_away_from_the_project(tmp_path, monkeypatch):
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    with pytest.raises(AssertionError, match="Fill in REPOSITORY above"):
        exec(cells("code")[0], {})


def test_without_a_run_or_a_place_to_train_one(tmp_path, monkeypatch):
    from videomar_jax.inference.notebook import trained, upload

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no run in gone, and no configs/quickstart.py"):
        trained("gone")
    with pytest.raises(UserError, match="Uploading works on Colab"):
        upload()
