"""Linear layer whose weights depend on the element: the hosts' self-connection."""

from __future__ import annotations

from typing import List, Optional

import torch

from gaunt_plugin.layers.irreps import Irrep, Irreps, sum_of
from gaunt_plugin.layers.layer import Layer
from gaunt_plugin.ops.recording import recording

# Numbers in the result before the sum over attributes, from which grouping by element pays.
_LARGE = 1 << 17


class ElementLinear(Layer):
    r"""e3nn's ``FullyConnectedTensorProduct`` with scalar node attributes, element by element.

    .. math:: y_{n v l m} = \frac{1}{\sqrt{A\, U_l}} \sum_{u a} W_{l, u a v}\, a_{n a}\, x_{n u l m}

    with ``A`` attributes, and ``U_l`` input channels of the irrep. Nodes of one element have equal
    attributes, so W is contracted with these once per element instead of once per node:
    ``O(nodes)`` in place of ``O(nodes A)`` products, and no ``[nodes, U, V]`` weights. Where nodes
    of one type have different attributes, each node is contracted by itself.

    Args:
        irreps_in: features.
        irreps_attrs: node attributes, scalars ``"Ax0e"``.
        irreps_out: new features; irreps that ``irreps_in`` lacks are zero.

    Shapes:
        ``x [nodes, irreps_in.dim]``, ``node_attrs [nodes, A]`` -> ``[nodes, irreps_out.dim]``.
        ``types [nodes]`` (int64) groups the nodes, which share their attributes where they are
        equal (rows of one embedding); left out, the largest attribute groups them. With
        ``num_types > 0`` types are below it and nodes of one type have equal attributes:
        programs, whose sizes can't depend on data, then do ``O(nodes num_types)`` products.

    State dict:
        ``weight``, with the layout, scale and random numbers of the layer it replaces.

    Raises:
        ValueError: attributes that are not even scalars, or no irrep in common.
    """

    def __init__(
        self, irreps_in: Irreps | str, irreps_attrs: Irreps | str, irreps_out: Irreps | str
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_out = Irreps(irreps_out)
        attrs = Irreps(irreps_attrs)
        if len(attrs) != 1 or attrs[0].ir != Irrep("0e"):
            raise ValueError(f"irreps_attrs must be even scalars, Ax0e, got {attrs}")
        self.num_attrs = attrs[0].mul
        slices_in, slices_out = self.irreps_in.slices(), self.irreps_out.slices()
        # Per coupled pair: columns of x, channels and components, output, columns of the weight.
        self.pairs, self.scales = [], []
        start = 0
        for i, (u, ir) in enumerate(self.irreps_in):
            for j, (v, ir_out) in enumerate(self.irreps_out):
                if ir == ir_out and u * v > 0:
                    stop = start + u * self.num_attrs * v
                    self.pairs.append([slices_in[i].start, u, ir.dim, j, v, start, stop])
                    fan_in = sum(m for m, other in self.irreps_in if other == ir)
                    self.scales.append((fan_in * self.num_attrs) ** -0.5)
                    start = stop
        if not self.pairs:
            raise ValueError(f"{self.irreps_in} and {self.irreps_out} have no irrep in common")
        self.dims_out = [s.stop - s.start for s in slices_out]
        self.large = _LARGE
        self.weight = torch.nn.Parameter(torch.randn(start))

    def forward(
        self,
        x: torch.Tensor,
        node_attrs: torch.Tensor,
        types: Optional[torch.Tensor] = None,
        num_types: int = 0,
    ) -> torch.Tensor:
        if recording():
            if types is not None and 0 < num_types < self.num_attrs:
                return self._type_by_type(x, node_attrs, types, num_types)
            return self._node_by_node(x, node_attrs, self._weights())
        large = x.shape[0] * self.num_attrs * sum(self.dims_out) > self.large
        # Grouped, the gradient of the attributes of a type arrives at one of its nodes.
        if not large or (types is None and node_attrs.requires_grad):
            return self._node_by_node(x, node_attrs, self._weights())
        if types is None:
            types = node_attrs.argmax(1)
        order = torch.argsort(types)
        _, sizes = torch.unique_consecutive(types.index_select(0, order), return_counts=True)
        first = order.index_select(0, sizes.cumsum(0) - sizes)
        of_element = node_attrs.index_select(0, first)
        expected = torch.repeat_interleave(of_element, sizes, dim=0)
        if not torch.equal(expected, node_attrs.index_select(0, order)):
            return self._node_by_node(x, node_attrs, self._weights())
        counts: List[int] = sizes.tolist()
        out = self._grouped(x.index_select(0, order), counts, self._tables(of_element))
        return out.index_select(0, torch.argsort(order))

    def _grouped(
        self, x: torch.Tensor, counts: List[int], tables: List[torch.Tensor]
    ) -> torch.Tensor:
        """Nodes in the order of their elements, so many of each, with tables of these."""
        features = self._features(x)
        out: List[torch.Tensor] = []
        for j, dim_out in enumerate(self.dims_out):
            parts: List[torch.Tensor] = []
            for k, pair in enumerate(self.pairs):
                if pair[3] == j:
                    dim = pair[2]
                    of_elements = features[k].split([dim * n for n in counts])
                    products = [f @ w for f, w in zip(of_elements, tables[k].unbind(0))]
                    part = torch.cat(products).view(x.shape[0], dim, pair[4])
                    parts.append(part.transpose(1, 2).flatten(1))
            out.append(sum_of(parts) if len(parts) > 0 else x.new_zeros([x.shape[0], dim_out]))
        return torch.cat(out, dim=1)

    def _features(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Per pair the features, ``[nodes * components, channels]``."""
        # One split: the backward pass of each slice would fill a tensor like x.
        sizes: List[int] = []
        places: List[int] = []
        at = 0
        for pair in self.pairs:
            begin, width = pair[0], pair[1] * pair[2]
            if begin > at:
                sizes.append(begin - at)
            if begin >= at:
                sizes.append(width)
                at = begin + width
            places.append(len(sizes) - 1)
        if at < x.shape[1]:
            sizes.append(x.shape[1] - at)
        split = x.split(sizes, dim=1)
        found: List[torch.Tensor] = []
        for pair, place in zip(self.pairs, places):
            u, dim = pair[1], pair[2]
            part = split[place]
            if dim > 1:
                part = part.reshape(-1, u, dim).transpose(1, 2)
            found.append(part.reshape(-1, u))
        return found

    def _tables(self, attrs: torch.Tensor) -> List[torch.Tensor]:
        """Per pair W contracted with rows of attributes, ``[rows, u, v]``."""
        tables: List[torch.Tensor] = []
        for pair, scale in zip(self.pairs, self.scales):
            u, v, start, stop = pair[1], pair[4], pair[5], pair[6]
            weight = self.weight[start:stop].view(u, self.num_attrs, v)
            # za,uav->uzv: W is read in its order, as it is much larger than the rest
            table = torch.bmm((attrs * scale).expand(u, -1, -1), weight)
            tables.append(table.transpose(0, 1))
        return tables

    def _weights(self) -> List[torch.Tensor]:
        """Per pair ``[u, attributes, v]``."""
        return [
            scale * self.weight[pair[5] : pair[6]].view(pair[1], self.num_attrs, pair[4])
            for pair, scale in zip(self.pairs, self.scales)
        ]

    def _type_by_type(
        self, x: torch.Tensor, node_attrs: torch.Tensor, types: torch.Tensor, num_types: int
    ) -> torch.Tensor:
        """Contracts W with the attributes of each type, also of those that no node has."""
        one_hot = types.unsqueeze(1) == torch.arange(num_types, device=types.device)
        one_hot = one_hot.to(x.dtype)
        # Nodes of one type have the same attributes: their mean.
        of_type = (one_hot.t() @ node_attrs) / one_hot.sum(0).clamp(min=1).unsqueeze(1)
        weights = [table.transpose(0, 1) for table in self._tables(of_type)]
        return self._node_by_node(x, one_hot, weights)

    def _node_by_node(
        self, x: torch.Tensor, node_attrs: torch.Tensor, weights: List[torch.Tensor]
    ) -> torch.Tensor:
        attrs = node_attrs.shape[1]
        features = self._features(x)
        out: List[torch.Tensor] = []
        for j, dim_out in enumerate(self.dims_out):
            parts: List[torch.Tensor] = []
            for k, pair in enumerate(self.pairs):
                if pair[3] == j:
                    u, dim, v = pair[1], pair[2], pair[4]
                    spread = features[k].view(-1, dim, u, 1) * node_attrs.view(-1, 1, 1, attrs)
                    part = spread.reshape(-1, u * attrs) @ weights[k].reshape(u * attrs, v)
                    if dim > 1:
                        part = part.view(-1, dim, v).transpose(1, 2).flatten(1)
                    parts.append(part)
            out.append(sum_of(parts) if len(parts) > 0 else x.new_zeros([x.shape[0], dim_out]))
        return torch.cat(out, dim=1)

    def extra_repr(self) -> str:
        return f"{self.irreps_in} x {self.num_attrs}x0e -> {self.irreps_out}"
