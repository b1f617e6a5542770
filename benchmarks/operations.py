"""The three operations of the paper's Figure 1: ours against e3nn's and MACE's layers."""

import torch
from e3nn import o3
from timing import Case, Work, device, layer, require, with_plain

from gaunt_plugin.layers import (
    AlignedConvolution,
    FourierProduct,
    GauntConvolution,
    GauntManyBody,
    GauntTensorProduct,
)

try:
    from mace import modules
    from mace.modules.wrapper_ops import (
        CuEquivarianceConfig,
        SymmetricContractionWrapper,
        TensorProduct,
    )
except ImportError:
    modules = None
try:
    import cuequivariance_torch  # noqa: F401

    CUEQ = modules is not None
except ImportError:
    CUEQ = False


def natural(channels, lmax):
    return o3.Irreps([(channels, (l, (-1) ** l)) for l in range(lmax + 1)])


def random(*shape):
    """Normal numbers to differentiate with respect to."""
    return torch.randn(shape).to(device()).requires_grad_()


def missing():
    raise ImportError("not installed: cuequivariance-torch")


def cueq():
    """Options with which MACE builds cuEquivariance's layers."""
    group = "O3_e3nn"  # MACE's own, with e3nn's signs
    return CuEquivarianceConfig(enabled=True, layout="mul_ir", group=group, optimize_all=True)


# Feature interaction


def tensor_product(kind, mode, rows, channels, lmax):
    irreps = natural(channels, lmax)
    x, y = random(rows, irreps.dim), random(rows, irreps.dim)
    if kind != "e3nn":
        module = GauntTensorProduct(irreps, irreps, irreps, mode)
        if kind == "fourier":
            module.product = FourierProduct.of_paths(module.paths)
    elif mode == "uvw":
        module = o3.FullyConnectedTensorProduct(irreps, irreps, irreps)
    else:
        ls = range(lmax + 1)
        paths = [
            (a, b, c, "uuu", True)
            for a in ls
            for b in ls
            for c in ls
            if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0
        ]
        module = o3.TensorProduct(irreps, irreps, irreps, paths)
    module = module.to(device())
    return layer(lambda: module(x, y), [x, y], module)


def tensor_products(quick):
    cases = []
    for mode, lmaxes, rows, channels in (
        ("uuu", (1, 2, 3, 4, 6, 8, 10), 256, 32),
        ("uvw", (1, 2, 3, 4, 6), 128, 16),
    ):
        if quick:
            lmaxes, rows, channels = [1], 4, 2
        for lmax in lmaxes:
            sizes = mode, rows, channels, lmax
            cases.append(
                Case(
                    f"feature interaction, {mode}",
                    lmax,
                    f"{rows} rows, {channels} channels, l ≤ {lmax}",
                    {
                        name: lambda kind=kind, sizes=sizes: tensor_product(kind, *sizes)
                        for name, kind in (
                            ("e3nn", "e3nn"),
                            ("Gaunt, grid", "grid"),
                            ("Gaunt, fourier", "fourier"),
                        )
                    },
                )
            )
    return cases


# Convolution


def channelwise(irreps_in, irreps_edge, target):
    """Irreps and paths of the product of each channel with harmonics, as in MACE and NequIP."""
    mid, paths = [], []
    for i, (mul, ir) in enumerate(irreps_in):
        for j, (_, ir_edge) in enumerate(irreps_edge):
            for ir_out in ir * ir_edge:
                if ir_out in target:
                    paths.append((i, j, len(mid), "uvu", True))
                    mid.append((mul, ir_out))
    mid, order, _ = o3.Irreps(mid).sort()
    paths = [(i, j, order[k], *rest) for i, j, k, *rest in paths]
    return mid.simplify(), o3.Irreps(mid), paths


def convolution(kind, nodes, edges, channels, lin, lmax):
    irreps_in, target = natural(channels, lin), natural(channels, lmax)
    harmonics = o3.Irreps.spherical_harmonics(lmax)
    index = torch.randint(0, nodes, (2, edges)).to(device())
    attrs = o3.spherical_harmonics(harmonics, torch.randn(edges, 3), True, "component")
    attrs = attrs.to(device()).requires_grad_()
    x = random(nodes, irreps_in.dim)
    mid, entries, paths = channelwise(irreps_in, harmonics, target)
    ours = {"aligned": AlignedConvolution, "grid": GauntConvolution}
    if kind in ours:
        module = ours[kind](irreps_in, harmonics, target)
        mid = target

        def call():
            return linear(module(x, attrs, weights, index))

    elif kind == "oeq":
        require("openequivariance")
        import openequivariance

        problem = openequivariance.TPProblem(
            irreps_in, harmonics, entries, paths, shared_weights=False, internal_weights=False
        )
        module = openequivariance.TensorProductConv(problem, torch_op=True, deterministic=False)
        module.weight_numel = problem.weight_numel

        def call():
            return linear(module(x, attrs, weights, index[1], index[0]))

    else:
        if kind == "cueq":
            module = TensorProduct(irreps_in, harmonics, entries, cueq_config=cueq())
        else:
            module = o3.TensorProduct(
                irreps_in, harmonics, entries, paths, shared_weights=False, internal_weights=False
            )

        def call():
            messages = module(x.index_select(0, index[0]), attrs, weights)
            zero = messages.new_zeros(nodes, messages.shape[1])
            return linear(zero.index_add(0, index[1], messages))

    module, linear = module.to(device()), o3.Linear(mid, target).to(device())
    weights = random(edges, module.weight_numel)
    return layer(call, [x, attrs, weights], linear)


def convolutions(quick):
    cases = []
    nodes, edges, channels = (5, 12, 2) if quick else (135, 2242, 64)
    series = {
        "convolution": [(l, l) for l in ([1] if quick else (1, 2, 3, 4, 6, 8))],
        "convolution, l ≤ 3": [] if quick else [(1, 3), (2, 3)],
    }
    for name, degrees in series.items():
        for lin, lmax in degrees:
            sizes = nodes, edges, channels, lin, lmax
            builds = {
                label: lambda kind=kind, sizes=sizes: convolution(kind, *sizes)
                for label, kind in (
                    ("e3nn", "e3nn"),
                    ("Gaunt, aligned", "aligned"),
                    ("Gaunt, grid", "grid"),
                    ("cuEquivariance", "cueq"),
                    ("OpenEquivariance", "oeq"),
                )
            }
            builds |= with_plain("Gaunt, aligned", builds["Gaunt, aligned"])
            if not CUEQ:
                builds["cuEquivariance"] = missing
            shape = f"{edges} edges, {channels} channels, l ≤ {lin} ⊗ l ≤ {lmax} → l ≤ {lmax}"
            cases.append(Case(name, lin, shape, builds))
    return cases


# Many-body product, MACE's symmetric contraction


def many_body(kind, atoms, channels, lmax, lout, nu, elements=4):
    irreps_in, irreps_out = natural(channels, lmax), natural(channels, lout)
    attrs = torch.nn.functional.one_hot(torch.randint(0, elements, (atoms,)), elements)
    attrs = attrs.to(device(), torch.get_default_dtype())
    x = random(atoms, channels, irreps_in.dim // channels)
    if kind in ("stock", "reduced"):
        module = modules.SymmetricContraction(
            irreps_in, irreps_out, nu, num_elements=elements, use_reduced_cg=kind == "reduced"
        )
    elif kind == "cueq":
        module = SymmetricContractionWrapper(irreps_in, irreps_out, nu, elements, cueq())
        module = module.to(device())
        of_element = attrs.argmax(1).int()
        return layer(lambda: module(x.transpose(1, 2).flatten(1), of_element), [x], module)
    else:
        parametrization = "paper" if kind == "fourier" else kind
        module = GauntManyBody(irreps_in, irreps_out, nu, elements, parametrization)
        if kind == "fourier":
            terms = module.product.terms
            terms.powers = FourierPowers(terms.powers, range(lmax + 1), range(lout + 1), nu)
    module = module.to(device())
    return layer(lambda: module(x, attrs), [x], module)


class FourierPowers(torch.nn.Module):
    """The paper's many-body product in the paper's way: a product of 2, 3, ... equal factors."""

    def __init__(self, powers, degrees_in, degrees_out, nu):
        super().__init__()
        self.powers = powers
        self.terms = powers.terms
        self.powers.grid = torch.nn.ModuleList(
            FourierProduct([degrees_in] * n, degrees_out) for n in range(2, nu + 1)
        )
        self.powers.grid.forward = lambda c: torch.stack(
            [product(*[c] * n) for n, product in enumerate(self.powers.grid, 2)], dim=1
        )

    def forward(self, *operands):
        return self.powers.plain(*operands)


def many_bodies(quick):
    if modules is None:
        return []
    atoms, channels = (3, 2) if quick else (135, 128)
    series = {
        "many-body product, ν = 3": [(l, min(l, 2), 3) for l in range(1, 7)],
        "many-body product, l ≤ 3 → l ≤ 1": [(3, 1, nu) for nu in (2, 3, 4, 6, 8)],
        "many-body product, l ≤ 2 → l ≤ 1": [(2, 1, nu) for nu in (2, 3, 4, 5, 6, 8)],
    }
    cases = []
    for name, sizes in series.items():
        for lmax, lout, nu in sizes[:1] if quick else sizes:
            kinds = {"MACE": "stock", "Gaunt, power": "power", "Gaunt, paper": "paper"}
            if nu <= 3:
                kinds["Gaunt, full"] = "full"
            kinds["Gaunt, fourier"] = "fourier"
            kinds |= {"MACE, reduced basis": "reduced", "cuEquivariance": "cueq"}
            builds = {
                label: lambda k=kind, n=(lmax, lout, nu): many_body(k, atoms, channels, *n)
                for label, kind in kinds.items()
            }
            for label in ("Gaunt, power", "Gaunt, paper", "Gaunt, full"):
                if label in builds:
                    builds |= with_plain(label, builds[label])
            if not CUEQ:
                builds |= dict.fromkeys(("MACE, reduced basis", "cuEquivariance"), missing)
            shape = f"{atoms} atoms, {channels} channels, l ≤ {lmax} → l ≤ {lout}, ν = {nu}"
            cases.append(Case(name, lmax if "ν = 3" in name else nu, shape, builds))
    return cases


# What the machine can do


def ceilings(quick):
    def copy():
        a = torch.zeros(1 << (20 if quick else 26), device=device())
        b = torch.zeros_like(a)
        return Work({"copy": lambda: b.copy_(a)}, lambda: b.copy_(a), [a])

    def matmul():
        n = 256 if quick else 2048
        a, b = (torch.randn(n, n, device=device()) for _ in range(2))
        return Work({"matrix product": lambda: a @ b}, lambda: a @ b, [a, b])

    return [Case("ceilings", 0, "", {"memory": copy, "arithmetic": matmul})]


def cases(quick):
    found = [tensor_products(quick), convolutions(quick), many_bodies(quick)]
    # One case of each kind shows that it runs.
    return [*ceilings(quick), *(case for kind in found for case in (kind[:1] if quick else kind))]
