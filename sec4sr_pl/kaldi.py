"""Kaldi's text models into tensors, and back: GMM-UBM, i-vector extractor, PLDA, LDA transform, mean vector.

A file is a sequence of words. Numbers stand between brackets; symmetric matrices as their lower triangles, row by row.
Only a bracket at a time is taken apart: the extractor of Kaldi's VoxCeleb recipe holds 59 million numbers.
"""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sec4sr_pl.files import read_text, whole

WORD = re.compile(r"\S+")


class KaldiError(ValueError):
    """A Kaldi model that can't be used, with where it stands, what was expected and what came."""


class FullGMM(NamedTuple):
    """A Gaussian mixture with full covariances."""

    weights: Tensor
    """(components,)"""
    means: Tensor
    """(components, inputs)"""
    precisions: Tensor
    """(components, inputs, inputs) inverse covariances."""


class Extractor(NamedTuple):
    """An i-vector extractor: frames of component c have mean loadings[c] @ w, w ~ N((offset, 0, ...), I)."""

    weights: Tensor
    """(components,)"""
    loadings: Tensor
    """(components, inputs, embedding)"""
    precisions: Tensor
    """(components, inputs, inputs) inverse residual covariances."""
    offset: Tensor
    """() prior mean of the first dimension."""


class PLDAModel(NamedTuple):
    """Two covariances in the basis where those within speakers are 1 and those between speakers `psi`."""

    mean: Tensor
    """(dims,)"""
    transform: Tensor
    """(dims, dims) into that basis."""
    psi: Tensor
    """(dims,)"""


def triangle(size: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Rows and columns of a lower triangle in Kaldi's order, row by row."""
    rows, columns = torch.tril_indices(size, size, device=device)
    return rows, columns


class Reader:
    """Words and numbers of a file, in order.

    Args:
        path: a file in Kaldi's text form.

    Raises:
        KaldiError: it is missing or no text.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        try:
            self.text = read_text(path, largest=4_000_000_000)
        except FileNotFoundError as error:
            raise KaldiError(f"There is no file {path}") from error
        except OSError as error:
            raise KaldiError(f"{path} can't be read ({error.strerror})") from error
        except ValueError as error:
            raise KaldiError(f"{error}: write it with Kaldi's copy tools and --binary=false") from error

    def error(self, expected: str, came: str) -> KaldiError:
        """What to raise."""
        return KaldiError(f"{self.path}, line {self.text.count(chr(10), 0, self.position) + 1}: {expected}, got {came}")

    def word(self) -> str:
        """The next word, '' at the end."""
        match = WORD.search(self.text, self.position)
        self.position = match.end() if match else len(self.text)
        return match[0] if match else ""

    def expect(self, *words: str) -> None:
        """Skip words that must come next."""
        for expected in words:
            if (came := self.word()) != expected:
                raise self.error(f"expected {expected}", f"'{came}'" if came else "the end of the file")

    def skip_to(self, tag: str) -> None:
        """Skip everything up to and with a tag."""
        found = self.text.find(tag, self.position)
        if found < 0:
            raise self.error(f"expected {tag}", "the end of the file")
        self.position = found + len(tag)

    def number(self) -> float:
        """A number outside brackets."""
        word = self.word()
        try:
            return float(word)
        except ValueError as error:
            raise self.error("expected a number", f"'{word}'" if word else "the end of the file") from error

    def body(self) -> str:
        """What stands between the next brackets."""
        self.expect("[")
        start, end = self.position, self.text.find("]", self.position)
        if end < 0:
            raise self.error("expected ] after the numbers", "the end of the file")
        self.position = end + 1
        return self.text[start:end]

    def vector(self, size: int | None = None) -> Tensor:
        """The numbers between the next brackets, (size,) float64; they must be finite."""
        words = self.body().split()
        try:
            values = torch.from_numpy(np.array(words, dtype=np.float64))
        except ValueError as error:
            raise self.error("expected numbers", str(error)) from error
        if not values.isfinite().all():
            raise self.error("expected finite numbers", "nan or inf")
        if size is not None and len(values) != size:
            raise self.error(f"expected {size} numbers", str(len(values)))
        return values

    def matrix(self, rows: int | None = None, columns: int | None = None) -> Tensor:
        """(rows, columns) float64. Where neither is known, a line is a row, as Kaldi writes it."""
        if rows is None and columns is None:
            start = self.position
            rows = sum(bool(line.strip()) for line in self.body().split("\n"))
            self.position = start
        values = self.vector()
        known = rows if rows is not None else columns
        if not len(values) or not known or len(values) % known or (rows and columns and len(values) != rows * columns):
            shape = f"{'any' if rows is None else rows} x {'any' if columns is None else columns}"
            raise self.error(f"expected a matrix of {shape} numbers", f"{len(values)} numbers")
        return values.reshape(-1 if rows is None else rows, -1 if columns is None else columns)

    def precision(self, size: int) -> Tensor:
        """(size, size) float64, the inverse of a covariance, from a lower triangle."""
        full, (rows, columns) = torch.zeros(size, size, dtype=torch.float64), triangle(size)
        full[rows, columns] = full[columns, rows] = self.vector(size * (size + 1) // 2)
        if torch.linalg.cholesky_ex(full).info:
            raise self.error("expected a positive definite matrix", "another")
        return full

    def end(self) -> None:
        """Nothing may follow."""
        if came := self.word():
            raise self.error("expected the end of the file", f"'{came}'")


def read_gmm(path: Path) -> FullGMM:
    """A `final.ubm` in text form; its `<GCONSTS>` follow from the rest, and are computed anew.

    Raises:
        KaldiError: truncated, in another form, or with a matrix that is no inverse of a covariance.
    """
    reader = Reader(path)
    reader.expect("<FullGMM>", "<GCONSTS>")
    reader.vector()
    reader.expect("<WEIGHTS>")
    weights = reader.vector()
    reader.expect("<MEANS_INVCOVARS>")
    linear = reader.matrix(rows=len(weights))
    reader.expect("<INV_COVARS>")
    precisions = torch.stack([reader.precision(linear.shape[1]) for _ in weights])
    reader.expect("</FullGMM>")
    reader.end()
    return FullGMM(weights, torch.linalg.solve(precisions, linear.unsqueeze(2)).squeeze(2), precisions)


def read_extractor(path: Path) -> Extractor:
    """A `final.ie` in text form.

    Raises:
        KaldiError: truncated, in another form, with weights that depend on the i-vector, or with a matrix that is no
            inverse of a covariance.
    """
    reader = Reader(path)
    reader.expect("<IvectorExtractor>", "<w>")
    if len(reader.vector()):
        raise reader.error("expected an empty <w> (weights that do not depend on the i-vector)", "a matrix")
    reader.expect("<w_vec>")
    weights = reader.vector()
    reader.expect("<M>")
    if (count := reader.number()) != len(weights):
        raise reader.error(f"expected {len(weights)} matrices, as there are weights", f"{count:g}")
    start = reader.position
    reader.skip_to("<SigmaInv>")
    inputs = (math.isqrt(8 * len(reader.vector()) + 1) - 1) // 2  # the triangle tells the size of a frame
    reader.position = start
    loadings = torch.stack([reader.matrix(rows=inputs) for _ in weights])
    reader.expect("<SigmaInv>")
    precisions = torch.stack([reader.precision(inputs) for _ in weights])
    reader.expect("<IvectorOffset>")
    offset = torch.tensor(reader.number(), dtype=torch.float64)
    reader.expect("</IvectorExtractor>")
    reader.end()
    return Extractor(weights, loadings, precisions, offset)


def read_plda(path: Path) -> PLDAModel:
    """A `plda` in text form.

    Raises:
        KaldiError: truncated, in another form, or with a variance below 0.
    """
    reader = Reader(path)
    reader.expect("<Plda>")
    mean = reader.vector()
    transform, psi = reader.matrix(len(mean), len(mean)), reader.vector(len(mean))
    if psi.min() < 0:
        raise reader.error("expected variances between speakers, none below 0", f"{psi.min():g}")
    reader.expect("</Plda>")
    reader.end()
    return PLDAModel(mean, transform, psi)


def read_vector(path: Path) -> Tensor:
    """(size,) of a file that holds one vector, as `mean.vec`.

    Raises:
        KaldiError: truncated or in another form.
    """
    reader = Reader(path)
    vector = reader.vector()
    reader.end()
    return vector


def read_matrix(path: Path) -> Tensor:
    """(rows, columns) of a file that holds one matrix, as `transform.mat`.

    Raises:
        KaldiError: truncated or in another form.
    """
    reader = Reader(path)
    matrix = reader.matrix()
    reader.end()
    return matrix


def numbers(values: Tensor) -> str:
    """Numbers, in as many digits as their type holds."""
    digits = 9 if values.dtype == torch.float32 else 17
    return " ".join(f"{value:.{digits}g}" for value in values.tolist())


def vector_text(vector: Tensor) -> str:
    """A vector as Kaldi writes it."""
    return f" [ {numbers(vector)} ]\n"


def matrix_text(rows: Iterable[Tensor]) -> str:
    """A matrix, or with rows of growing size a triangle, as Kaldi writes it."""
    return " [\n" + "".join(f"  {numbers(row)} \n" for row in rows) + "]\n"


def triangle_text(symmetric: Tensor) -> str:
    """A symmetric matrix as Kaldi writes it."""
    return matrix_text(row[: index + 1] for index, row in enumerate(symmetric))


def write(path: Path, parts: Iterable[str]) -> None:
    """Write a text that appears under its name only when it is whole."""
    with whole(path) as partial, partial.open("w", encoding="ascii") as file:
        file.writelines(parts)


def gmm_constants(gmm: FullGMM) -> Tensor:
    """(components,) log density of each component, with its weight, at 0."""
    linear = (gmm.precisions @ gmm.means.unsqueeze(2)).squeeze(2)
    peak = torch.linalg.cholesky(gmm.precisions).diagonal(dim1=1, dim2=2).log().sum(1)
    distance = (linear * gmm.means).sum(1)
    constants: Tensor = gmm.weights.log() + peak - 0.5 * (gmm.means.shape[1] * math.log(2 * math.pi) + distance)
    return constants


def write_gmm(path: Path, gmm: FullGMM) -> None:
    """The inverse of `read_gmm`."""

    def parts() -> Iterator[str]:
        yield f"<FullGMM> \n<GCONSTS> {vector_text(gmm_constants(gmm))}<WEIGHTS> {vector_text(gmm.weights)}"
        yield f"<MEANS_INVCOVARS> {matrix_text((gmm.precisions @ gmm.means.unsqueeze(2)).squeeze(2))}<INV_COVARS> "
        yield from map(triangle_text, gmm.precisions)
        yield "</FullGMM> \n"

    write(path, parts())


def write_extractor(path: Path, extractor: Extractor) -> None:
    """The inverse of `read_extractor`."""

    def parts() -> Iterator[str]:
        yield f"<IvectorExtractor> <w>  [ ]\n<w_vec> {vector_text(extractor.weights)}<M> {len(extractor.weights)} "
        yield from map(matrix_text, extractor.loadings)
        yield "<SigmaInv> "
        yield from map(triangle_text, extractor.precisions)
        yield f"<IvectorOffset> {extractor.offset.item():.17g} </IvectorExtractor> \n"

    write(path, parts())


def write_plda(path: Path, plda: PLDAModel) -> None:
    """The inverse of `read_plda`."""
    write(path, ["<Plda> ", vector_text(plda.mean), matrix_text(plda.transform), vector_text(plda.psi), "</Plda> \n"])


def write_vector(path: Path, vector: Tensor) -> None:
    """The inverse of `read_vector`."""
    write(path, [vector_text(vector)])


def write_matrix(path: Path, matrix: Tensor) -> None:
    """The inverse of `read_matrix`."""
    write(path, [matrix_text(matrix)])
