"""Kaldi's text models: read from Kaldi's own layout, written and read back, and refused where they are damaged."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl import kaldi

UBM = """<FullGMM>
<GCONSTS>  [ -3.1 -4.2 ]
<WEIGHTS>  [ 0.25 0.75 ]
<MEANS_INVCOVARS>  [
  2 1
  -1 3.5e+00 ]
<INV_COVARS>  [
  2
  0.5 1 ]
 [ 4
  -1 3 ]
</FullGMM>
"""
EXTRACTOR = """<IvectorExtractor> <w>  [ ]
<w_vec>  [ 0.25 0.75 ]
<M> 2  [
  1 2 3
  4 5 6 ]
 [
  -1 -2 -3
  -4 -5 -6 ]
<SigmaInv>  [
  2
  0.5 1 ]
 [
  4
  -1 3 ]
<IvectorOffset> 12.5 </IvectorExtractor>
"""
PLDA = "<Plda>  [ 1 2 ]\n [\n  1 0.5 \n  0 2 ]\n [ 3 0.1 ]\n</Plda> \n"


@pytest.fixture
def at(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "model.txt"
        path.write_text(text)
        return path

    return write


def spread(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size, size) well-conditioned symmetric positive definite matrices."""
    root = torch.randn(count, size, 2 * size, generator=generator, dtype=torch.float64)
    return root @ root.mT / size


class Case(NamedTuple):
    """A kind of model: how it is read and written, a random one, and a text of Kaldi's."""

    read: Callable[[Path], Any]
    write: Callable[[Path, Any], None]
    make: Callable[[torch.Generator], Any]
    text: str


def normal(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(*shape, generator=generator, dtype=torch.float64)


def gmm(generator: torch.Generator) -> kaldi.FullGMM:
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    return kaldi.FullGMM(weights / weights.sum(), normal(5, 4)(generator), spread(5, 4, generator))


def extractor(generator: torch.Generator) -> kaldi.Extractor:
    offset = torch.tensor(100.25, dtype=torch.float64)
    return kaldi.Extractor(gmm(generator).weights, normal(5, 4, 7)(generator), spread(5, 4, generator), offset)


CASES = {
    "gmm": Case(kaldi.read_gmm, kaldi.write_gmm, gmm, UBM),
    "extractor": Case(kaldi.read_extractor, kaldi.write_extractor, extractor, EXTRACTOR),
    "plda": Case(
        kaldi.read_plda,
        kaldi.write_plda,
        lambda generator: kaldi.PLDAModel(normal(6)(generator), normal(6, 6)(generator), normal(6)(generator).abs()),
        PLDA,
    ),
    "vector": Case(kaldi.read_vector, kaldi.write_vector, normal(9), " [ 1 2.5 -3e-2 ]\n"),
    "matrix": Case(kaldi.read_matrix, kaldi.write_matrix, normal(3, 5), " [\n  1 2 \n  3 4 \n  5 6 ]\n"),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


def parts(model: Any) -> tuple[Tensor, ...]:
    return (model,) if isinstance(model, Tensor) else tuple(model)


def test_a_mixture_is_read_from_kaldis_layout(at: Callable[[str], Path]) -> None:
    weights, means, precisions = kaldi.read_gmm(at(UBM))
    assert weights.tolist() == [0.25, 0.75]
    assert precisions.tolist() == [[[2, 0.5], [0.5, 1]], [[4, -1], [-1, 3]]]
    assert_close(precisions @ means[:, :, None], torch.tensor([[2, 1], [-1, 3.5]], dtype=torch.float64)[:, :, None])


def test_an_extractor_is_read_from_kaldis_layout(at: Callable[[str], Path]) -> None:
    weights, loadings, precisions, offset = kaldi.read_extractor(at(EXTRACTOR))
    assert weights.tolist() == [0.25, 0.75] and offset.item() == 12.5
    assert loadings.tolist() == [[[1, 2, 3], [4, 5, 6]], [[-1, -2, -3], [-4, -5, -6]]]
    assert precisions.tolist() == [[[2, 0.5], [0.5, 1]], [[4, -1], [-1, 3]]]


def test_plda_is_read_from_kaldis_layout(at: Callable[[str], Path]) -> None:
    mean, transform, psi = kaldi.read_plda(at(PLDA))
    assert (mean.tolist(), transform.tolist(), psi.tolist()) == ([1, 2], [[1, 0.5], [0, 2]], [3, 0.1])


def test_words_count_and_not_lines(at: Callable[[str], Path]) -> None:
    for read, text in ((kaldi.read_gmm, UBM), (kaldi.read_extractor, EXTRACTOR), (kaldi.read_plda, PLDA)):
        expected = parts(read(at(text)))
        for other in (" ".join(text.split()), "\n".join(text.split())):
            assert all(torch.equal(*pair) for pair in zip(parts(read(at(other))), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_is_read_back_to_the_last_digit(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    model = case.make(torch.Generator().manual_seed(0))
    model = model.to(dtype) if isinstance(model, Tensor) else type(model)(*(part.to(dtype) for part in model))
    case.write(tmp_path / "model.txt", model)
    again = parts(case.read(tmp_path / "model.txt"))
    for name, own, expected in zip(getattr(model, "_fields", " "), again, parts(model), strict=True):
        if name == "means":  # a file holds precision @ mean
            assert_close(own.to(dtype), expected)
        else:
            assert torch.equal(own.to(dtype), expected)


def test_the_constants_of_a_mixture_are_log_densities_at_zero(tmp_path: Path) -> None:
    model = gmm(torch.Generator().manual_seed(0))
    kaldi.write_gmm(tmp_path / "ubm", model)
    words = (tmp_path / "ubm").read_text().split()
    constants = [float(word) for word in words[words.index("<GCONSTS>") + 2 :][:5]]
    for constant, weight, mean, precision in zip(constants, *model, strict=True):
        density = multivariate_normal(mean.numpy(), np.linalg.inv(precision.numpy())).logpdf(np.zeros(4))
        assert constant == pytest.approx(np.log(weight.item()) + density, rel=1e-10)


def test_a_file_cut_anywhere_is_refused(case: Case, at: Callable[[str], Path]) -> None:
    words = case.text.split()
    for count in range(len(words)):
        with pytest.raises(kaldi.KaldiError, match=r"model\.txt, line \d+: expected .* got "):
            case.read(at(" ".join(words[:count])))


@pytest.mark.parametrize(
    ("case", "old", "new", "message"),
    [
        ("gmm", "<WEIGHTS>", "<VARIANCES>", r"line 3: expected <WEIGHTS>, got '<VARIANCES>'"),
        ("gmm", "-1 3.5e+00 ]", "-1 ]", r"expected a matrix of 2 x any numbers, got 3 numbers"),
        ("gmm", "3.5e+00", "three", r"expected numbers, got .*three"),
        ("gmm", "0.5 1 ]", "0.5 nan ]", "expected finite numbers"),
        ("gmm", "0.5 1 ]", "0.5 1 1 ]", "line 9: expected 3 numbers, got 4"),
        ("gmm", "</FullGMM>", "</FullGMM> 1", "expected the end of the file, got '1'"),
        ("extractor", "<M> 2", "<M> 3", "expected 2 matrices, as there are weights, got 3"),
        ("extractor", "<w>  [ ]", "<w>  [ 1 2 ]", "expected an empty <w>"),
        ("extractor", "12.5", "<x>", "expected a number, got '<x>'"),
        ("plda", "[ 3 0.1 ]", "[ 3 ]", "expected 2 numbers, got 1"),
        ("matrix", "5 6", "5", "expected a matrix of 3 x any numbers, got 5 numbers"),
    ],
)
def test_what_is_ill_formed_is_named(case: str, old: str, new: str, message: str, at: Callable[[str], Path]) -> None:
    with pytest.raises(kaldi.KaldiError, match=message):
        CASES[case].read(at(CASES[case].text.replace(old, new)))


def test_binary_and_missing_files_are_named(case: Case, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\0BFV \x04\xff\xfe")
    with pytest.raises(kaldi.KaldiError, match=r"binary, line 1: expected text in UTF-8.*--binary=false"):
        case.read(tmp_path / "binary")
    with pytest.raises(kaldi.KaldiError, match=r"There is no file .*missing"):
        case.read(tmp_path / "missing")
    with pytest.raises(kaldi.KaldiError, match=r"below can't be read \(Not a directory\)$"):
        case.read(tmp_path / "binary" / "below")


def test_a_file_that_can_not_be_written_whole_leaves_the_old_one(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "mean.vec"
    kaldi.write_vector(path, torch.ones(3))

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        kaldi.write_vector(path, torch.zeros(3))
    assert torch.equal(kaldi.read_vector(path), torch.ones(3, dtype=torch.float64))
    assert [file.name for file in tmp_path.iterdir()] == ["mean.vec"]
