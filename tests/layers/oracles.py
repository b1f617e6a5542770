"""The layers' results from explicit coupling coefficients and loops, in NumPy.

Coefficients come from e3nn's ``wigner_3j`` and closed formulas, not from quadrature, so nothing
here shares a table with the layers. Normalisation and the layout of the weights are restated: both
are part of the meaning of a saved model.
"""

import math
from functools import cache

import numpy as np
import torch

from gaunt_plugin.sphere import coupling_count, coupling_rms, nested_terms, power_rms

from ..e3nn_o3 import o3

GAIN_IN, GAIN_OUT = 10.0, 23.0


@cache
def wigner(l1, l2, l3):
    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()


def three_j_zero(a, b, c):
    """Wigner 3j symbol with all orders zero."""
    if (a + b + c) % 2 or not abs(a - b) <= c <= a + b:
        return 0.0
    g = (a + b + c) // 2
    f = math.factorial
    root = math.sqrt(f(2 * g - 2 * a) * f(2 * g - 2 * b) * f(2 * g - 2 * c) / f(2 * g + 1))
    return (-1) ** g * root * f(g) / (f(g - a) * f(g - b) * f(g - c))


@cache
def gaunt(l1, l2, l3):
    """Average of Y_l1m1 Y_l2m2 Y_l3m3 over the sphere.

    A multiple of wigner_3j, whose squares sum to one; its middle entry (all orders zero) is a
    square times positive numbers, which fixes the sign.
    """
    size = abs(three_j_zero(l1, l2, l3)) * math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1))
    if size == 0:
        return np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    table = wigner(l1, l2, l3)
    return size * math.copysign(1, table[l1, l2, l3]) * table


def degrees(irreps):
    return [ir.l for _, ir in o3.Irreps(irreps)]


def split(x, ls):
    """Split the last axis into a dict from degree to components."""
    parts = np.split(x, np.cumsum([2 * l + 1 for l in ls])[:-1], axis=-1)
    return dict(zip(ls, parts, strict=True))


def multiply(a, b, ls):
    """Degrees ``ls`` of the product of two functions given by their coefficients."""
    out = {}
    for l3 in ls:
        terms = [
            np.einsum("...i,...j,ijk->...k", x, y, gaunt(l1, l2, l3))
            for l1, x in a.items()
            for l2, y in b.items()
            if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
        ]
        if terms:
            out[l3] = sum(terms)
    return out


def power(f, nu, l_out):
    """Coefficient ``<F^nu Y_lout>``, the product expanded in all the degrees that it needs."""
    lmax = max(f)
    result = f
    for k in range(2, nu + 1):
        highest = min(k * lmax, l_out + (nu - k) * lmax)
        result = multiply(result, f, range(highest + 1))
    return result.get(l_out)


def many_body(layer, x, elements):
    """Output of ``GauntManyBody`` for ``x [nodes, channels, components]`` and element indices."""
    if layer.parametrization == "full":
        return parity_many_body(layer, x, elements)
    ls, ls_out = degrees(layer.irreps_in), degrees(layer.irreps_out)
    nodes, channels = x.shape[:2]
    f = split(x, ls)
    out = {L: np.zeros((nodes, channels, 2 * L + 1)) for L in ls_out}
    weights = {name: w.numpy()[elements] for name, w in layer.state_dict().items()}

    common = [l for l in ls if l in ls_out]
    if common:
        w = weights["linear.weight"].reshape(nodes, channels, len(common))
        for i, l in enumerate(common):
            out[l] += w[:, :, i, None] * f[l]

    if layer.contraction_degree > 1:
        add_powers(
            out,
            f,
            layer.contraction_degree,
            weights.get(f"{powers_of(layer)}.weight_in"),
            weights[f"{powers_of(layer)}.weight_out"],
            math.sqrt(0.5) if layer.parametrization == "nested" else 1.0,
        )
    if layer.parametrization == "nested":
        irs = {o3.Irrep(l, (-1) ** l): a for l, a in f.items()}
        total = {o3.Irrep(L, (-1) ** L): a for L, a in out.items()}
        add_nested(layer, total, irs, elements)
        out = {ir.l: a for ir, a in total.items()}
    return np.concatenate([out[L].reshape(nodes, -1) for L in ls_out], axis=1)


def add_full(layer, out, f, weights):
    """Terms of ``full``; ``f`` and ``out`` by irrep."""
    functions, outputs = (
        {(ir.l, bool(kind(ir))): part for ir, part in parts.items()} for parts in (f, out)
    )
    natural, pseudo = (tuple(sorted(l for l, k in functions if k == kind)) for kind in (0, 1))
    order = 0
    for nu in range(2, layer.contraction_degree + 1):
        terms = [(o, t) for o in outputs for t in nested_terms(tuple(functions), nu, o)]
        if not terms:
            continue
        w = weights[f"product.terms.{order}.weight"]
        w = w.reshape(len(w), -1, len(terms))
        order += 1
        for i, (output, t) in enumerate(terms):
            value = couple(functions[t[0]], functions[t[1]], t[2] if nu == 3 else output)
            if nu == 3:
                value = couple(value, functions[t[3]], output)
            paths = coupling_count(natural, nu, output[0], pseudo, output[1])
            scale = GAIN_OUT / math.sqrt(paths * sum(other == output for other, _ in terms))
            outputs[output] += scale * w[:, :, i, None] * value


def couple(a, b, function):
    """Product projected on one function, with unit variance for independent unit normal factors."""
    l1, l2, l3 = a.shape[-1] // 2, b.shape[-1] // 2, function[0]
    table = bracket(l1, l2)[l3] if (l1 + l2 + l3) % 2 else gaunt(l1, l2, l3)
    table = table * math.sqrt((2 * l3 + 1) / np.sum(table**2))
    return np.einsum("zci,zcj,ijk->zck", a, b, table)


def add_powers(out, f, correlation, weight_in, weight_out, share):
    ls = tuple(f)
    nodes, channels = f[ls[0]].shape[:2]
    rows = [
        (nu, L)
        for nu in range(2, correlation + 1)
        for L in out
        if power_rms(ls, nu, L, weight_in is not None)
    ]
    if not rows:
        return
    rank = weight_out.shape[1] // (channels * len(rows))
    weight_out = weight_out.reshape(nodes, rank, channels, len(rows))
    for v in range(rank):
        if weight_in is None:
            u = np.ones((nodes, channels, len(ls)))
        else:
            u = GAIN_IN * weight_in.reshape(nodes, rank, channels, len(ls))[:, v]
        g = {l: u[:, :, i, None] * f[l] / math.sqrt(2 * l + 1) for i, l in enumerate(ls)}
        for i, (nu, L) in enumerate(rows):
            own = power_rms(ls, nu, L, weight_in is not None)
            scale = share * coupling_rms(ls, nu, L) / own / math.sqrt(rank)
            out[L] += GAIN_OUT * scale * weight_out[:, v, :, i, None] * power(g, nu, L)
        for nu in range(2, correlation + 1):
            for L in out:
                value = power(g, nu, L)
                assert (nu, L) in rows or value is None or np.abs(value).max() < 1e-10


def powers_of(layer):
    """Where the weights of the powers are in the state dict."""
    return "product.powers.terms" if layer.parametrization == "nested" else "product.terms"


def parity_many_body(layer, x, elements):
    """Output of ``GauntManyBody`` with pseudo parity: products of functions of known kind."""
    irs, irs_out = ([ir for _, ir in irreps] for irreps in (layer.irreps_in, layer.irreps_out))
    nodes, channels = x.shape[:2]
    parts = np.split(x, np.cumsum([ir.dim for ir in irs])[:-1], axis=-1)
    f = dict(zip(irs, parts, strict=True))
    out = {ir: np.zeros((nodes, channels, ir.dim)) for ir in irs_out}
    weights = {name: w.numpy()[elements] for name, w in layer.state_dict().items()}
    common = [ir for ir in irs if ir in out]
    if common:
        w = weights["linear.weight"].reshape(nodes, channels, len(common))
        for i, ir in enumerate(common):
            out[ir] += w[:, :, i, None] * f[ir]
    if layer.parametrization == "full":
        add_full(layer, out, f, weights)
        return np.concatenate([part.reshape(nodes, -1) for part in out.values()], axis=1)
    weight_in = weights.get(f"{powers_of(layer)}.weight_in")
    natural, pseudo = (tuple(sorted(ir.l for ir in irs if kind(ir) == k)) for k in (0, 1))
    rows = {}
    for nu in range(2, layer.contraction_degree + 1):
        for ir in irs_out:
            tail = (pseudo, bool(kind(ir)))
            own = power_rms(natural, nu, ir.l, weight_in is not None, *tail)
            if own:
                rows[nu, ir] = coupling_rms(natural, nu, ir.l, *tail) / own
                if layer.parametrization == "nested":
                    rows[nu, ir] *= math.sqrt(0.5)
    if layer.parametrization == "nested":
        add_nested(layer, out, f, elements)
    rank = 0
    if rows:
        weight_out = weights[f"{powers_of(layer)}.weight_out"]
        rank = weight_out.shape[1] // (channels * len(rows))
        weight_out = weight_out.reshape(nodes, rank, channels, len(rows))
    for v in range(rank):
        u = np.ones((nodes, channels, len(irs)))
        if weight_in is not None:
            u = GAIN_IN * weight_in.reshape(nodes, rank, channels, len(irs))[:, v]
        g = {ir: u[:, :, i, None] * f[ir] / math.sqrt(ir.dim) for i, ir in enumerate(irs)}
        result = g
        for nu in range(2, layer.contraction_degree + 1):
            grown = {}
            for a, first in result.items():
                for b, second in g.items():
                    for c in a * b:
                        if (a.l + b.l + c.l) % 2 == 0:
                            table = gaunt(a.l, b.l, c.l)
                            term = np.einsum("zci,zcj,ijk->zck", first, second, table)
                            grown[c] = grown.get(c, 0) + term
            result = grown
            for i, ((n, ir), scale) in enumerate(rows.items()):
                if n == nu:
                    w = GAIN_OUT * scale * weight_out[:, v, :, i, None] / math.sqrt(rank)
                    out[ir] += w * result[ir]
            for ir in irs_out:
                assert (nu, ir) in rows or np.abs(result.get(ir, 0)).max() < 1e-10
    return np.concatenate([part.reshape(nodes, -1) for part in out.values()], axis=1)


def add_nested(layer, out, f, elements):
    """Nested products of ``nested``, path by path; ``f`` and ``out`` by irrep."""
    names = {n for n in layer.state_dict() if ".steps." in n}
    if not names:
        return
    prefix = next(iter(names)).split("steps")[0] + "steps."
    weights = {n.removeprefix(prefix): w.numpy()[elements] for n, w in layer.state_dict().items()}
    count = 1 + max(int(n.removeprefix(prefix).split(".")[0]) for n in names)
    irs, irs_out = list(f), list(out)
    nodes, channels = f[irs[0]].shape[:2]
    natural, pseudo = (tuple(sorted(ir.l for ir in irs if kind(ir) == k)) for k in (0, 1))
    lmax = max(ir.l for ir in irs + irs_out)
    # Forward: what products give; backward: what of it the later products and outputs need.
    given, terms = [set(irs)], []
    for n in range(2, count + 2):
        found = {
            c
            for a in given[-1]
            for b in irs
            for c in a * b
            if c.l <= lmax and (even(a, b, c) or (layer.antisymmetric and (n > 2 or a != b)))
        }
        given.append(found)
        terms.append([])
        for ir in irs_out:
            args = (natural, n, ir.l, pseudo, bool(kind(ir)))
            power = power_rms(*args[:3], True, *args[3:])
            if ir in found and coupling_rms(*args) and (power or layer.antisymmetric):
                scale = coupling_rms(*args) if n == 2 else coupling_count(*args) ** -0.5
                terms[-1].append((ir, scale * math.sqrt(0.5 if power else 1.0)))
    tables, needed = [], set()
    for n in range(count, 0, -1):
        wanted = needed | {ir for ir, _ in terms[n - 1]}
        tables.insert(0, coupled(given[n - 1], irs, wanted, layer.antisymmetric, same=n == 1))
        needed = {path[0] for path in tables[0]}
    used = [[ordered({path[i] for path in t}) for i in range(3)] for t in tables]
    rank = weights["0.weight_in"].shape[1] // (channels * len(used[0][0] + used[0][1]))
    state = {ir: np.stack([x] * rank, axis=1) for ir, x in f.items()}
    for n, (table, (first, second, _)) in enumerate(zip(tables, used, strict=True)):
        w = weights[f"{n}.weight_in"].reshape(nodes, rank, channels, -1, 1) * GAIN_IN
        a = {ir: w[..., i, :] * state[ir] for i, ir in enumerate(first)}
        b = {ir: w[..., len(first) + i, :] * f[ir][:, None] for i, ir in enumerate(second)}
        state = {}
        for (i, j, k), t in table.items():
            state[k] = state.get(k, 0) + np.einsum("zvci,zvcj,ijk->zvck", a[i], b[j], t)
        if terms[n]:
            w = weights[f"{n}.weight_out"].reshape(nodes, rank, channels, -1, 1)
            for i, (ir, scale) in enumerate(terms[n]):
                part = (w[..., i, :] * state[ir]).sum(1)
                out[ir] += GAIN_OUT * scale / math.sqrt(rank) * part


def even(*irs):
    return sum(ir.l for ir in irs) % 2 == 0


def node_channels(x, irreps):
    """Turn e3nn's flat layout into a dict from degree to ``[nodes, channels, 2l+1]``."""
    out, start = {}, 0
    for mul, ir in o3.Irreps(irreps):
        out[ir.l] = x[:, start : start + mul * ir.dim].reshape(len(x), mul, ir.dim)
        start += mul * ir.dim
    return out


def flat(parts):
    return np.concatenate([part.reshape(len(part), -1) for part in parts.values()], axis=1)


def gaunt_convolution(layer, x, directions, weights, edge_index):
    """Output of ``GauntConvolution``, edge by edge."""
    f = node_channels(x, layer.irreps_in)
    ls_edge, ls_out = degrees(layer.irreps_edge), degrees(layer.irreps_out)
    channels = layer.irreps_in[0].mul
    out = {L: np.zeros((len(x), channels, 2 * L + 1)) for L in ls_out}
    for L in ls_out:
        norm = sum(three_j_zero(a, b, L) ** 2 for a in f for b in ls_edge) ** -0.5
        for e, (sender, receiver) in enumerate(edge_index.T):
            for i, l2 in enumerate(ls_edge):
                y = harmonics(l2, directions[e]) / math.sqrt(2 * l2 + 1)
                for l1, a in f.items():
                    if three_j_zero(l1, l2, L) == 0:
                        continue
                    for c in range(channels):
                        product = np.einsum("i,j,ijk->k", a[sender, c], y, gaunt(l1, l2, L))
                        w = weights[e, i * channels + c] / math.sqrt(2 * l1 + 1)
                        out[L][receiver, c] += norm * w * product
    return flat(out)


def harmonics(l, direction):
    return o3.spherical_harmonics(
        l, torch.from_numpy(direction), normalize=False, normalization="component"
    ).numpy()


@cache
def order_couplings(l1, l3, m, odd):
    """Factors c with ``sum_l2 c_l2 wigner_3j(l1, l2, l3) . Y_l2(n)`` = D^l3 P D^l1^T.

    At the pole P keeps the orders +m and -m, or, where ``l1 + l2 + l3`` is odd, turns order -m
    into +m and +m into minus -m; it is zero elsewhere.
    """
    ls = range(abs(l1 - l3) + odd, l1 + l3 + 1, 2)
    orders = range(int(odd), min(l1, l3) + 1)
    at_pole = [
        [
            wigner(l1, l2, l3)[l1 - k if odd else l1 + k, l2, l3 + k] * math.sqrt(2 * l2 + 1)
            for l2 in ls
        ]
        for k in orders
    ]
    factors = np.linalg.solve(np.array(at_pole), np.array([float(k == m) for k in orders]))
    return list(zip(ls, factors, strict=True))


def aligned_convolution(layer, x, directions, weights, edge_index):
    """Output of ``AlignedConvolution``, as a sum of couplings with the edges' harmonics."""
    f, start = {}, 0
    for mul, ir in layer.irreps_in:
        f[ir] = x[:, start : start + mul * ir.dim].reshape(len(x), mul, ir.dim)
        start += mul * ir.dim
    irs_out = [ir for _, ir in layer.irreps_out]
    channels = layer.irreps_in[0].mul
    out = {ir: np.zeros((len(x), channels, ir.dim)) for ir in irs_out}

    def kind(ir):
        return ir.p * (-1) ** ir.l

    paths = []
    for m in range(max(ir.l for ir in f) + 1):
        for k3 in (1, -1):
            same = [ir for ir in f if kind(ir) == k3]
            other = [ir for ir in f if kind(ir) != k3 and m > 0]
            paths += [
                (m, ir1, ir3)
                for ir1 in same + other
                for ir3 in irs_out
                if kind(ir3) == k3 and min(ir1.l, ir3.l) >= m
            ]
    assert layer.weight_numel == len(paths) * channels
    for i, (m, ir1, ir3) in enumerate(paths):
        l1, l3, odd = ir1.l, ir3.l, kind(ir1) != kind(ir3)
        # Orders with which each feature reaches the output.
        reached = sum(2 * min(ir.l, l3) + (kind(ir) == kind(ir3)) for ir in f)
        norm = math.sqrt((2 * l3 + 1) / reached)
        for e, (sender, receiver) in enumerate(edge_index.T):
            matrix = sum(
                c * np.einsum("ijk,j->ki", wigner(l1, l2, l3), harmonics(l2, directions[e]))
                for l2, c in order_couplings(l1, l3, m, odd)
            )
            for c in range(channels):
                w = norm * weights[e, i * channels + c]
                out[ir3][receiver, c] += w * (matrix @ f[ir1][sender, c])
    return flat(out)


@cache
def bracket(l1, l2):
    """Dict from degree l3 to a coupling of ``s . (grad Y_l1 x grad Y_l2)`` to it.

    Multiples of wigner_3j, fitted to the bracket of e3nn's harmonics at a few points.
    """
    ls = [l for l in range(abs(l1 - l2), l1 + l2 + 1) if (l1 + l2 + l) % 2]
    if not ls:
        return {}
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    points = torch.nn.functional.normalize(points, dim=1)

    def gradients(l):
        def function(s):
            return o3.spherical_harmonics(l, s, normalize=True, normalization="component")

        return torch.vmap(torch.func.jacfwd(function))(points).numpy()  # gix

    s = points.numpy()
    cross = np.cross(gradients(l1)[:, :, None], gradients(l2)[:, None])
    target = np.einsum("gx,gijx->gij", s, cross)
    columns = [
        np.einsum("ijk,gk->gij", wigner(l1, l2, l), np.stack([harmonics(l, p) for p in s]))
        for l in ls
    ]
    matrix = np.stack([c.ravel() for c in columns], axis=1)
    factors, *_ = np.linalg.lstsq(matrix, target.ravel(), rcond=None)
    assert np.abs(matrix @ factors - target.ravel()).max() < 1e-11 * (1 + np.abs(target).max())
    return {l: f * wigner(l1, l2, l) for l, f in zip(ls, factors, strict=True)}


def kind(ir):
    """0 for natural parity, 1 for pseudo parity."""
    return int(ir.p != (-1) ** ir.l)


def coupling(ir1, ir2, ir3):
    """Coefficients of a path on inputs scaled per degree."""
    l1, l2, l3 = ir1.l, ir2.l, ir3.l
    if (l1 + l2 + l3) % 2 == 0:
        return gaunt(l1, l2, l3) / math.sqrt((2 * l1 + 1) * (2 * l2 + 1))
    return bracket(l1, l2)[l3] / math.prod(math.sqrt((2 * l + 1) * l * (l + 1)) for l in (l1, l2))


def coupled(irs1, irs2, irs_out, antisymmetric, same=False):
    """All paths and, per path, its coefficients with the scale of its output.

    ``same``: both factors are the same numbers, times independent random weights.
    """
    sets = [set(irs) for irs in (irs1, irs2, irs_out)]
    paths = [
        (a, b, c)
        for a in sets[0]
        for b in sets[1]
        for c in sets[2]
        if c in a * b and (even(a, b, c) or (antisymmetric and not (same and a == b)))
    ]
    tables = {path: coupling(*path) for path in paths}
    scaled = {}
    for path, table in tables.items():
        to_same = [p for p in paths if p[2] == path[2]]
        odd = sum(ir.l for ir in path) % 2
        own = [p for p in to_same if sum(ir.l for ir in p) % 2 == odd]
        square = sum(mean_square(tables[p], same and p[0] == p[1]) for p in own) / path[2].dim
        scaled[path] = table * math.sqrt(len(own) / len(to_same) / square)
    return scaled


def mean_square(table, equal):
    """Squared norm of the product of two unit normal vectors, or of one with itself."""
    size = np.sum(table**2)
    if equal:
        size += np.sum(table * table.transpose(1, 0, 2)) + np.sum(np.trace(table) ** 2)
    return size


def ordered(irs):
    return sorted(irs, key=lambda ir: (kind(ir), ir.l))


def by_irrep(x, irreps):
    """Flat features to a dict from irrep to ``[rows, channels, components]``."""
    out = {}
    for (mul, ir), where in zip(irreps, irreps.slices(), strict=True):
        part = x[:, where].reshape(len(x), mul, ir.dim)
        out[ir] = np.concatenate([out[ir], part], axis=1) if ir in out else part
    return out


def tensor_product(layer, x, y, weight):
    """Output of ``GauntTensorProduct``, path by path; ``weight [rows, weight_numel]``."""
    odd = any(path.antisymmetric for path in layer.paths)
    sides = (layer.irreps_in1, layer.irreps_in2, layer.irreps_out)
    paths = coupled(*({ir for _, ir in side} for side in sides), odd)
    used = [ordered({path[i] for path in paths}) for i in range(3)]
    sides = (by_irrep(x, layer.irreps_in1), by_irrep(y, layer.irreps_in2))
    uuu, rows = layer.mode == "uuu", len(x)
    start = 0
    mixed = []
    for features, irs in zip(sides, used, strict=False):
        if uuu:
            shape = (rows, layer.rank, layer.irreps_out[0].mul, len(irs))
            stop = start + math.prod(shape[1:])
            w = weight[:, start:stop].reshape(shape)
            start = stop
            mixed.append(
                {
                    ir: np.einsum("nrc,ncm->nrcm", w[..., i], features[ir])
                    for i, ir in enumerate(irs)
                }
            )
        else:
            mixed.append({})
            for ir in irs:
                channels = features[ir].shape[1]
                stop = start + channels * layer.rank
                w = weight[:, start:stop].reshape(rows, channels, layer.rank)
                start = stop
                value = np.einsum("nur,num->nrm", w, features[ir]) / math.sqrt(channels)
                mixed[-1][ir] = value[:, :, None]
    product = {}
    for (a, b, c), table in paths.items():
        term = np.einsum("nrci,nrcj,ijk->nrck", mixed[0][a], mixed[1][b], table)
        product[c] = product.get(c, 0) + term
    out, done = {}, {}
    for i, ir in enumerate(used[2]):
        if uuu:
            shape = (rows, layer.rank, layer.irreps_out[0].mul, len(used[2]))
            w = weight[:, start:].reshape(shape)[..., i]
            out[ir] = np.einsum("nrc,nrck->nck", w, product[ir]) / math.sqrt(layer.rank)
        else:
            channels = sum(mul for mul, other in layer.irreps_out if other == ir)
            stop = start + layer.rank * channels
            w = weight[:, start:stop].reshape(rows, layer.rank, channels)
            start = stop
            value = np.einsum("nrw,nrk->nwk", w, product[ir][:, :, 0])
            out[ir] = value / math.sqrt(layer.rank)
        done[ir] = 0
    parts = []
    for mul, ir in layer.irreps_out:
        parts.append(out[ir][:, done[ir] : done[ir] + mul].reshape(rows, mul * ir.dim))
        done[ir] += mul
    return np.concatenate(parts, axis=1)


def selfmix(layer, x):
    """Output of ``GauntSelfmix`` for flat features, path by path."""
    irreps = layer.irreps_in
    irs = [ir for _, ir in irreps]
    features = by_irrep(x, irreps)
    odd = any(path.antisymmetric for path in layer.paths)
    paths = [
        (a, b, c)
        for a in irs
        for b in irs
        for c in irs
        if c in a * b and ((a.l + b.l + c.l) % 2 == 0 or (odd and a != b))
    ]
    used = [ordered({path[i] for path in paths}) for i in range(3)]
    weights = {name: w.numpy() for name, w in layer.state_dict().items()}
    w, start = [], 0
    for side in used:
        shape = (layer.rank, layer.channels, len(side))
        part = weights["weight"][start : start + math.prod(shape)].reshape(shape)
        w.append({ir: part[..., i] for i, ir in enumerate(side)})
        start += math.prod(shape)
    out = {}
    for i, c in enumerate(irs):
        linear = weights["weight_self"][:, i, None] * features[c]
        if c not in used[2]:
            out[c] = linear
            continue
        total = 0
        to_same = [path for path in paths if path[2] == c]
        for parity in (0, 1):
            own = [path for path in to_same if sum(ir.l for ir in path) % 2 == parity]
            value, square = 0, 0
            for path in own:
                a, b, _ = path
                table = coupling(*path)
                value = value + np.einsum(
                    "rc,rc,rc,nci,ncj,ijk->nck",
                    *(w[0][a], w[1][b], w[2][c], features[a], features[b], table),
                )
                square += mean_square(table, a == b) / c.dim
            if own:
                share = len(own) / len(to_same)
                total = total + value * math.sqrt(share / square / layer.rank)
        out[c] = (linear + total) / math.sqrt(2)
    return np.concatenate([out[ir].reshape(len(x), -1) for ir in irs], axis=1)
