import re

import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution, GauntConvolution, GauntManyBody

from . import cases

MANY_BODY = {
    "pseudo parity out of full": (("4x0e+4x1o", "4x0e+4x1e", 3, 2, "full"), r"pseudo degree 1 in"),
    "pseudo parity out": (("4x0e+4x1o", "4x0e+4x1e", 3, 2), r"pseudo degree 1 in .*4x1e"),
    # the cross product is antisymmetric: powers do not have it
    "bracket": (("4x1o", "4x1e", 2, 2), r"pseudo degree 1 in irreps_out 4x1e"),
    "irrep twice": (("4x0o+4x1o+4x0o", "4x1o", 2, 2), r"irreps_in must list each irrep once"),
    "unequal multiplicities in": (("4x0e+2x1o", "4x0e", 3, 2), r"irreps_in .*one multiplicity"),
    "unequal multiplicities out": (("4x0e", "4x0e+2x1o", 3, 2), r"irreps_out .*one multiplicity"),
    "other multiplicity out": (("4x0e+4x1o", "2x0e", 3, 2), r"same multiplicity.*4x0e.*2x0e"),
    "no irreps": (("", "4x0e", 3, 2), "irreps_in"),
    "degree twice": (("4x0e+4x0e", "4x0e", 3, 2), "each irrep once"),
    "wrong order": (("4x1o+4x0e", "4x0e", 3, 2), "increasing order"),
    "correlation 0": (("4x0e", "4x0e", 0, 2), r"1 to 8, got 0"),
    "correlation 9": (("4x0e", "4x0e", 9, 2), r"1 to 8, got 9"),
    "correlation 2.5": (("4x0e", "4x0e", 2.5, 2), r"1 to 8, got 2.5"),
    "correlation True": (("4x0e", "4x0e", True, 2), r"1 to 8, got True"),
    "elements 2.0": (("4x0e", "4x0e", 2, 2.0), r"num_elements .*whole number.*got 2.0"),
    "rank 1.5": (("4x0e", "4x0e", 2, 2, "power", 1.5), r"rank .*whole number.*got 1.5"),
    "rank True": (("4x0e", "4x0e", 2, 2, "power", True), r"rank .*whole number.*got True"),
    "no element": (("4x0e", "4x0e", 2, 0), r"num_elements .*got 0"),
    "parametrization": (("4x0e", "4x0e", 2, 2, "cg"), r"'cg'.*power, paper, full"),
    "full beyond 3": (("4x0e", "4x0e", 4, 2, "full"), r"got 4.*'power'"),
    "brackets of powers": (
        ("4x1o", "4x0e", 2, 2, "power", 4, True),
        r"'power' has no antisymmetric products; use 'nested'",
    ),
    "brackets of full": (("4x1o", "4x0e", 2, 2, "full", 4, True), r"'full' has brackets wherever"),
    # two factors of one channel: {A, A} = 0
    "bracket of a degree with itself": (
        ("4x1o", "4x0e+4x1e", 2, 2, "nested", 4, True),
        r"pseudo degree 1 in irreps_out 4x0e\+4x1e",
    ),
    "rank": (("4x0e", "4x0e", 2, 2, "power", 0), r"rank .*got 0"),
    "parity unreachable": (("4x0e+4x2e", "4x1o", 3, 2), r"degree 1 in irreps_out 4x1o"),
    "degree unreachable": (("4x0e+4x1o", "4x0e+4x4e", 3, 2), r"up to 3 factors.*degree 4"),
}


@pytest.mark.parametrize(("arguments", "message"), MANY_BODY.values(), ids=MANY_BODY)
def test_many_body_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GauntManyBody(*arguments)


BOTH = {
    "pseudo parity edge": (("2x0e+2x1o", "0e+1o+2o", "2x0e"), r"irreps_edge .*natural parity"),
    "unequal multiplicities": (("2x0e+3x1o", "0e+1o", "2x0e"), "one multiplicity"),
    "edge multiplicity": (("2x0e+2x1o", "2x0e+2x1o", "2x0e"), r"multiplicity 1, got 2x0e\+2x1o"),
    "other multiplicity out": (("2x0e+2x1o", "0e+1o", "3x0e"), r"same multiplicity.*3x0e"),
}


@pytest.mark.parametrize("layer", [GauntConvolution, AlignedConvolution])
@pytest.mark.parametrize(("arguments", "message"), BOTH.values(), ids=BOTH)
def test_convolution_arguments(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(*arguments)


def test_gaunt_convolution_refuses_pseudo_parity():
    with pytest.raises(ValueError, match=r"irreps_in .*natural parity"):
        GauntConvolution("2x0e+2x1e", "0e+1o", "2x0e")
    with pytest.raises(ValueError, match=r"irreps_out .*natural parity"):
        GauntConvolution("2x0e+2x1o", "0e+1o", "2x0o")


def test_aligned_convolution_refuses_what_it_cannot_reach():
    with pytest.raises(ValueError, match=r"2x0e\+2x1o to pseudo degree 0"):
        AlignedConvolution("2x0e+2x1o", "0e+1o", "2x0o")
    with pytest.raises(ValueError, match=r"2x0e to pseudo degree 1"):
        AlignedConvolution("2x0e", "0e+1o", "2x1e")
    with pytest.raises(ValueError, match=r"2x0o\+2x1e to degree 0"):
        AlignedConvolution("2x0o+2x1e", "0e+1o", "2x0e")
    with pytest.raises(ValueError, match=r"irreps_in must list each irrep once"):
        AlignedConvolution("2x0e+2x1o+2x0e", "0e+1o", "2x0e")


def test_gaunt_convolution_refuses_a_degree_it_cannot_reach():
    with pytest.raises(ValueError, match=r"degree 4 in irreps_out 2x0e\+2x4e"):
        GauntConvolution("2x0e+2x1o", "0e+1o+2e", "2x0e+2x4e")
    with pytest.raises(ValueError, match="degree 1"):
        GauntConvolution("2x0e", "0e", "2x1o")


def test_aligned_convolution_needs_the_direction():
    with pytest.raises(ValueError, match=r"degrees \[1\].*got 1x0e\+1x2e"):
        AlignedConvolution("2x0e+2x1o", "0e+2e", "2x0e")
    with pytest.raises(ValueError, match=r"degrees \[0, 2\].*got 1x0e\+1x1o"):
        AlignedConvolution("2x0e", "0e+1o", "2x0e+2x2e")


def wrong_shapes(arguments, any_leading_axes):
    """Name, and the arguments with one of another shape."""
    for i, a in enumerate(arguments):
        changed = {"narrow": a[..., :-1], "no axis": a.flatten()[0]}
        if a.dim() > 1:
            changed["flattened"] = a.flatten()
        if not any_leading_axes:
            changed |= {"one row": a[0], "one axis more": a[None]}
        if i and a.dim() > 1:  # the number of nodes or edges is that of the first argument
            changed["short"] = a[:-1]
            changed["long"] = torch.cat([a, a])
        for change, b in changed.items():
            yield f"argument {i} {change}", [*arguments[:i], b, *arguments[i + 1 :]]


def shapes_to_refuse(name):
    layer = cases.BUILD[name]()
    arguments = list(cases.arguments(layer, cases.inputs(layer)))
    return layer, dict(wrong_shapes(arguments, name in cases.PRODUCTS))


@pytest.mark.parametrize("name", cases.NAMES)
def test_wrong_shapes(name):
    layer, refused = shapes_to_refuse(name)
    assert len(refused) >= (5 if name in cases.SELFMIX else 8)
    wrong = []
    for change, arguments in refused.items():
        try:
            layer(*arguments)
        except ValueError as error:
            assert "must be" in str(error), change  # noqa: PT017  all changes in one test
            assert "got" in str(error), change  # noqa: PT017
        except Exception as error:
            wrong.append(f"{change}: {type(error).__name__}")
        else:
            wrong.append(f"{change}: no error")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", cases.NAMES)
def test_mixed_dtypes(name):
    """One argument in float32 for a float64 layer is an error, not a silent promotion."""
    layer = cases.BUILD[name]()
    arguments = cases.arguments(layer, cases.inputs(layer))
    silent = []
    for i, a in enumerate(arguments):
        if not a.is_floating_point():
            continue
        try:
            layer(*arguments[:i], a.float(), *arguments[i + 1 :])
        except (ValueError, RuntimeError) as error:
            assert re.search("dtype|type Double|scalar type", str(error))  # noqa: PT017
        else:
            silent.append(i)
    assert silent == []


@pytest.mark.parametrize("name", cases.NAMES)
def test_mixed_devices(name):
    layer = cases.BUILD[name]()
    arguments = cases.arguments(layer, cases.inputs(layer))
    with pytest.raises((ValueError, RuntimeError), match="device"):
        layer(arguments[0].to("meta"), *arguments[1:])
