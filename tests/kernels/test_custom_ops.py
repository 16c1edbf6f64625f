"""CustomOpLibrary: the README's example as it stands there, files and folders, and refusals."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from quire.kernels.custom_ops import CustomOpLibrary

README = Path(__file__).parents[2] / "README.md"
HEAD = """
from typing import Annotated
import torch
from quire.kernels.custom_ops import Input, Output, register
"""
DOUBLE = """
@register("double")
def double(
    out: Annotated[torch.Tensor, Output(torch.float32)],
    x: Annotated[torch.Tensor, Input(rank=1)],
    factor: float = 2.0,
) -> None:
    out.copy_(x * factor)
"""


def written(folder: Path, **files: str) -> Path:
    for stem, text in files.items():
        (folder / f"{stem}.py").write_text(HEAD + text)
    return folder


@pytest.fixture
def library(tmp_path: Path) -> CustomOpLibrary:
    return CustomOpLibrary(written(tmp_path, double=DOUBLE) / "double.py")


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    op = next(block for block in blocks if block.startswith("# my_ops/grayscale.py"))
    use = next(block for block in blocks if 'CustomOpLibrary("my_ops")' in block)
    (tmp_path / "my_ops").mkdir()
    (tmp_path / "my_ops" / "grayscale.py").write_text(op)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "use.py").write_text(use)

    names = runpy.run_path("use.py")

    weights = torch.tensor([0.21, 0.71, 0.07])
    expected = (names["image"].float() * weights).sum(-1)
    assert (names["out"].float() - expected).abs().max() <= 1


def test_a_file_gives_its_ops_by_name(library: CustomOpLibrary) -> None:
    out = torch.empty(3)

    library.double(out, torch.tensor([1.0, 2.0, 3.0]))
    assert out.tolist() == [2.0, 4.0, 6.0]

    library.double(out, x=torch.tensor([1.0, 2.0, 3.0]), factor=0.5)
    assert out.tolist() == [0.5, 1.0, 1.5]
    assert list(library) == ["double"]
    assert "double" in dir(library)


def test_an_op_is_a_torch_operator_with_declared_mutation(library: CustomOpLibrary) -> None:
    torch.library.opcheck(
        library.double._run,
        (torch.zeros(3), torch.ones(3)),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_a_folder_gives_the_ops_of_its_files(tmp_path: Path) -> None:
    triple = DOUBLE.replace("double", "triple").replace("2.0", "3.0")
    library = CustomOpLibrary(written(tmp_path, b=triple, a=DOUBLE, _helper="raise SystemExit"))
    out = torch.empty(1)

    library.triple(out, torch.ones(1))

    assert out.item() == 3.0
    assert list(library) == ["double", "triple"]


def test_an_edited_file_can_be_loaded_again(tmp_path: Path, library: CustomOpLibrary) -> None:
    written(tmp_path, double=DOUBLE.replace("2.0", "20.0"))
    out = torch.empty(1)

    CustomOpLibrary(tmp_path / "double.py").double(out, torch.ones(1))

    assert out.item() == 20.0


def test_wrong_tensors_are_named_and_nothing_is_written(library: CustomOpLibrary) -> None:
    out = torch.zeros(3)
    for error, text, arguments in (
        (ValueError, "out must be torch.float32, got torch.int32", (out.int(), torch.ones(3))),
        (ValueError, r"x must have 1 dimensions, got \[3, 1\]", (out, torch.ones(3, 1))),
        (ValueError, "x must be on cpu, got meta", (out, torch.ones(3, device="meta"))),
        (TypeError, "x must be a tensor", (out, 3.0)),
        (TypeError, "missing a required argument: 'x'", (out,)),
    ):
        with pytest.raises(error, match=text):
            library.double(*arguments)
    assert out.tolist() == [0.0, 0.0, 0.0]


def test_an_unknown_op_lists_those_there_are(library: CustomOpLibrary) -> None:
    with pytest.raises(AttributeError, match="no custom op halve; there are double"):
        library.halve  # noqa: B018


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no function is marked with register"),
        (DOUBLE.replace("Output(torch.float32)", "Input()"), "no parameter is annotated with Out"),
        (DOUBLE.replace("factor: float", "factor: list"), "factor must be annotated as"),
        (DOUBLE.replace("Annotated[torch.Tensor, Input(rank=1)]", "torch.Tensor"), "x must be ann"),
    ],
    ids=["no-op", "no-output", "unknown-type", "bare-tensor"],
)
def test_a_library_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CustomOpLibrary(written(tmp_path, library=text))


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        CustomOpLibrary(tmp_path / "nowhere")
    with pytest.raises(ZeroDivisionError) as caught:
        CustomOpLibrary(written(tmp_path, broken="1 / 0"))
    assert "while loading the custom op library" in caught.value.__notes__[0]
    (tmp_path / "broken.py").unlink()
    twice = written(tmp_path, a=DOUBLE, b=DOUBLE)
    with pytest.raises(ValueError, match=r"custom op double is in .*a\.py and in .*b\.py"):
        CustomOpLibrary(twice)
