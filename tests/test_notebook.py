"""The notebook is well formed and its cells run one after the other, on a tiny run; all logic is the package's."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "image_to_video.ipynb"


def cells(kind):
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_file_is_a_notebook_without_results():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names) and notebook["cells"][0]["cell_type"] == "markdown"
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "clear the outputs before committing"


def test_cells_are_short_and_define_nothing():
    for code in cells("code"):
        assert len(code.splitlines()) <= 12, code
        for node in ast.walk(ast.parse(code)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef), "logic belongs into the package"


def test_the_cells_run(finished, tmp_path, monkeypatch):
    """As in a notebook: one name space, the value of a cell's last line is shown."""
    pytest.importorskip("IPython")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDEOMAR_WORKDIR", str(finished))
    (tmp_path / "configs").mkdir()  # stands for the project's folder
    space, shown = {}, []
    for code in cells("code"):
        code = code.replace("(1, 4, 8), (0.0, 0.7, 1.0)", "(1, 2), (0.5,)")
        *lines, last = ast.parse(code).body
        exec(compile(ast.Module(lines, []), NOTEBOOK.name, "exec"), space)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), space))
        else:
            exec(compile(ast.Module([last], []), NOTEBOOK.name, "exec"), space)
    movies = [value._repr_html_().count("<video") for value in shown if hasattr(value, "_repr_html_")]
    assert movies == [1, 2, 1, 1], "the video, the table of two, the longer and the larger one"
    assert len(space["longer"]) == 9 and (tmp_path / "continued.mp4").stat().st_size > 1000
    assert len(set(space["prompts"])) == 4
    assert space["longer"].settings["keep_first"] is False


def test_the_first_cell_says_what_it_lacks_away_from_the_project(tmp_path, monkeypatch):
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    with pytest.raises(AssertionError, match="Fill in REPOSITORY above"):
        exec(cells("code")[0], {})


def test_without_a_run_or_a_place_to_train_one(tmp_path, monkeypatch):
    from videomar_jax.notebook import trained, upload

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no run in gone, and no configs/quickstart.py"):
        trained("gone")
    with pytest.raises(RuntimeError, match="Uploading works on Colab"):
        upload()
