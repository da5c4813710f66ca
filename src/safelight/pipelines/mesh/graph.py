"""Convolutions over the vertices of a mesh."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from safelight.pipelines.mesh.template import Level


class Support(nn.Module):
    """T₁ of a level as the entries of each row, so that applying it is a weighted sum of neighbours.

    Parameters
    ----------
    columns : Tensor
        (vertices, most entries of a row) int64; shorter rows end with entries of value 0.
    values : Tensor
        The same shape.
    """

    columns: Tensor
    values: Tensor

    def __init__(self, columns: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("values", values, persistent=False)

    @classmethod
    def of(cls, level: Level) -> Self:
        """Return the support of a level of a template."""
        matrix = level.support
        lengths = torch.from_numpy(matrix.indptr).long().diff()
        filled = torch.arange(int(lengths.max())) < lengths[:, None]
        columns, values = torch.zeros(filled.shape, dtype=torch.int64), torch.zeros(filled.shape)
        columns[filled] = torch.from_numpy(matrix.indices).long()
        values[filled] = torch.from_numpy(matrix.data).float()
        return cls(columns, values)

    def forward(self, x: Tensor) -> Tensor:
        """Return T₁x of (samples, vertices, features)."""
        samples, vertices, features = x.shape
        beside = x.transpose(0, 1).reshape(vertices, samples * features)
        summed = functional.embedding_bag(self.columns, beside, per_sample_weights=self.values.to(x.dtype), mode="sum")
        applied: Tensor = summed.view(vertices, samples, features).transpose(0, 1)
        return applied


class Chebyshev(nn.Module):
    """The parameters of y = xW₀ + T₁(xW₁) + b (Defferrard et al. 2016, of first order).

    Parameters
    ----------
    given, wanted : int
        Features.
    """

    def __init__(self, given: int, wanted: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(given, wanted)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(wanted))


class GraphConvolution(Chebyshev):
    """The graph convolution over the vertices of a mesh, T₁ as a ``Support``; parameters as for ``Chebyshev``."""

    def forward(self, x: Tensor, support: Support) -> Tensor:
        """Return (samples, vertices, wanted) of (samples, vertices, given)."""
        own, beside = (x @ torch.cat(list(self.weights), dim=1)).chunk(2, dim=-1)
        result: Tensor = own + self.bias + support(beside)
        return result
