"""i-vectors: a GMM with full covariances aligns the frames, and a linear model explains how an utterance moves it."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sec4sr_pl import kaldi
from sec4sr_pl.kaldi import triangle
from sec4sr_pl.types import full_lengths, mask_padding, valid_mask

FRAMES = 4096
"""Frames that are aligned at once: what bounds the memory, whatever the batch and its length."""
COMPONENTS = 32
"""Components whose quadratic terms are prepared at once."""


class Densities(NamedTuple):
    """A GMM in the form in which its densities are two matrix products."""

    constants: Tensor
    """(components, 1) log of weight times density at 0."""
    linear: Tensor
    """(components, inputs) coefficients of a frame."""
    quadratic: Tensor
    """(components, inputs * (inputs + 1) / 2) coefficients of a frame's `products`."""

    @classmethod
    def of(cls, gmm: kaldi.FullGMM) -> "Densities":
        """The form of a mixture, computed in double precision."""
        precise = kaldi.FullGMM(*(part.double() for part in gmm))
        rows, columns = triangle(gmm.means.shape[1], gmm.means.device)
        halves = torch.where(rows == columns, -0.5, -1.0)  # the product of two dimensions stands for both halves
        quadratic = precise.precisions[:, rows, columns] * halves
        linear = (precise.precisions @ precise.means.unsqueeze(2)).squeeze(2)
        return cls(*(part.to(gmm.means) for part in (kaldi.gmm_constants(precise).unsqueeze(1), linear, quadratic)))

    def log(self, frames: Tensor) -> Tensor:
        """(components, frames) log of weight times density, of (frames, inputs)."""
        linear = torch.addmm(self.constants, self.linear, frames.T)
        return torch.addmm(linear, self.quadratic, products(frames))


def products(frames: Tensor) -> Tensor:
    """(inputs * (inputs + 1) / 2, frames): each product of two dimensions, once."""
    first, second = (frames.T.index_select(0, index) for index in triangle(frames.shape[1], frames.device))
    return first * second


class IVector(nn.Module):
    """The posterior mean of an utterance's latent vector, given its frames: (batch, embedding_size).

    Frame x belongs to component c with the posterior g_c of a GMM over frames. With the statistics N_c = sum g_c and
    F_c = sum g_c x, the loadings T_c and the residual covariances S_c, the embedding is
    (I + sum_c N_c T_c' S_c^-1 T_c)^-1 (offset e_0 + sum_c T_c' S_c^-1 F_c) - offset e_0.

    All components count, none is pruned. The models are buffers: they come from Kaldi or `sec4sr_pl.training`, and no
    optimizer moves them. What they imply, `T' S^-1 T` above all, is computed once and is not in the state dict. Without
    arguments it is a small random model.

    Args:
        inputs: dimensions of a frame.
        components: of the GMM.
        embedding_size: dimensions of an i-vector.

    Raises:
        ValueError: a size below 1.

    Source: Dehak et al., "Front-end factor analysis for speaker verification", 2011, in Kaldi's form, in which the
    prior mean of the first dimension is `offset` and frames are not centered.
    """

    minimum_frames = 1
    masked = True

    def __init__(self, inputs: int = 72, components: int = 8, embedding_size: int = 32) -> None:
        super().__init__()
        if min(inputs, components, embedding_size) < 1:
            raise ValueError(f"Expected sizes of at least 1, got {inputs}, {components} and {embedding_size}")
        self.inputs, self.components, self.embedding_size = inputs, components, embedding_size
        self.weights: Tensor
        self.means: Tensor
        self.precisions: Tensor
        self.loadings: Tensor
        self.residual_precisions: Tensor
        self.offset: Tensor
        self.constants: Tensor
        self.linear: Tensor
        self.quadratic: Tensor
        self.position: Tensor
        self.projections: Tensor
        self.information: Tensor
        precisions = 0.01 * torch.eye(inputs).repeat(components, 1, 1)  # cepstra have deviations of about 10
        self.register_buffer("weights", torch.full((components,), 1.0 / components))
        self.register_buffer("means", 10.0 * torch.randn(components, inputs))
        self.register_buffer("precisions", precisions)
        self.register_buffer("loadings", torch.randn(components, inputs, embedding_size))
        self.register_buffer("residual_precisions", precisions.clone())
        self.register_buffer("offset", torch.zeros(()))
        self.prepare()
        self.register_load_state_dict_post_hook(lambda module, _: module.prepare())  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, gmm: kaldi.FullGMM, extractor: kaldi.Extractor) -> "IVector":
        """The backbone of these models, in their precision and on their device.

        Raises:
            ValueError: models of different components or frames.
        """
        components, inputs, size = extractor.loadings.shape
        if gmm.means.shape != (components, inputs):
            raise ValueError(
                f"Expected a UBM of {components} components over {inputs} dimensions, as the extractor has, "
                f"got {gmm.means.shape[0]} over {gmm.means.shape[1]}"
            )
        with torch.device("meta"):  # no random models of this size
            network = cls(inputs, components, size)
        network = network.to(gmm.means.dtype).to_empty(device=gmm.means.device)
        rest = {"loadings": extractor.loadings, "residual_precisions": extractor.precisions, "offset": extractor.offset}
        network.load_state_dict({**gmm._asdict(), **rest})
        return network

    @classmethod
    def from_kaldi(cls, ubm: Path, extractor: Path) -> "IVector":
        """The backbone of a `final.ubm` and a `final.ie` in text form, in single precision.

        Raises:
            KaldiError: a file in another form.
            ValueError: as `of`.
        """
        return cls.of(kaldi.read_gmm(ubm), kaldi.read_extractor(extractor)).float()

    def models(self) -> tuple[kaldi.FullGMM, kaldi.Extractor]:
        """The models, to be written."""
        extractor = kaldi.Extractor(self.weights, self.loadings, self.residual_precisions, self.offset)
        return kaldi.FullGMM(self.weights, self.means, self.precisions), extractor

    @torch.no_grad()
    def prepare(self) -> None:
        """Compute what the models imply; to be called when a buffer was changed by hand."""
        for name, part in Densities.of(self.models()[0])._asdict().items():
            self._imply(name, part)
        rows, columns = triangle(self.embedding_size, self.means.device)
        position = rows.new_empty(self.embedding_size, self.embedding_size)
        position[rows, columns] = position[columns, rows] = torch.arange(len(rows), device=rows.device)
        self._imply("position", position.flatten())
        projections = torch.empty_like(self.loadings)
        quadratic = self.loadings.new_empty(self.components, len(rows))
        for start in range(0, self.components, COMPONENTS):
            part = slice(start, start + COMPONENTS)
            loadings = self.loadings[part].double()
            projected = self.residual_precisions[part].double() @ loadings
            projections[part] = projected
            quadratic[part] = (loadings.mT @ projected)[:, rows, columns]
        self._imply("projections", projections.flatten(0, 1))
        self._imply("information", quadratic)

    def _imply(self, name: str, value: Tensor) -> None:
        """A buffer that follows from the others."""
        self.register_buffer(name, value, persistent=False)

    @property
    def densities(self) -> Densities:
        """Those of the GMM."""
        return Densities(self.constants, self.linear, self.quadratic)

    def _align(self, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """`statistics` of few frames, with (batch, frames) bool."""
        posteriors = self.densities.log(frames.flatten(0, 1)).softmax(0).T.reshape(*valid.shape, -1)
        posteriors = posteriors * valid.unsqueeze(2)
        return posteriors.sum(1), posteriors.mT @ frames

    def statistics(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, components) sums of posteriors, and (batch, components, inputs) of posteriors times frames.

        For a gradient, posteriors are computed once more instead of kept.
        """
        step = max(1, FRAMES // max(1, len(frames)))
        pieces = torch.split(mask_padding(frames, lengths), step, 1)
        valid = torch.split(valid_mask(lengths, frames.shape[1]), step, 1)
        parts: list[Any] = [
            checkpoint(self._align, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(pieces, valid, strict=True)
        ]
        counts, sums = (torch.stack(each).sum(0) for each in zip(*parts, strict=True))
        return counts, sums

    def posterior(self, counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, embedding_size) mean of the latent vector, and the Cholesky factor of its precision."""
        packed = counts @ self.information
        identity = torch.eye(self.embedding_size, dtype=packed.dtype, device=packed.device)
        precision = identity + packed.index_select(1, self.position).reshape(-1, *identity.shape)
        factor = torch.linalg.cholesky(precision)
        linear = self.prior + sums.flatten(1) @ self.projections
        return torch.cholesky_solve(linear.unsqueeze(2), factor).squeeze(2), factor

    @property
    def prior(self) -> Tensor:
        """(embedding_size,) prior mean of the latent vector."""
        return functional.pad(self.offset.unsqueeze(0), (0, self.embedding_size - 1))

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """i-vectors of (batch, frames, inputs) with (batch,) valid frames."""
        with torch.autocast(frames.device.type, enabled=False):
            counts, sums = self.statistics(frames, full_lengths(frames) if lengths is None else lengths)
            return self.posterior(counts, sums)[0] - self.prior
