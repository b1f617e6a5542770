"""Download the published data set of acetylacetone (AcAc), or check a copy you already have.

Batatia et al., arXiv 2205.06643 (BOTNet), distributed by its authors (MIT licence) in the GitHub
repository davkovacs/BOTNet-datasets, folder `dataset_acac`: DFT energies (eV) and forces (eV/Å) of
acetylacetone, 15 atoms, in extended XYZ. The SHA-256 of every file is known and enforced.

Usage:
    python fetch_acac.py DIR                              download what DIR lacks, check all
    python fetch_acac.py DIR --verify                     check only, no network
    python fetch_acac.py DIR --files train_300K.xyz ...   only these files

Exit status: 0 if every file is there and passes, 1 otherwise. No third-party package is needed.
"""

import sys

import fetch_3bpa

SHA256 = {
    "isolated_atoms.xyz": "b74f321b453374621b447d65c60979f70df1b7182c8ee0215388b2c574f33823",
    "train_300K.xyz": "8f5706d6902360555a5be59395612d2afc3489a75688388a58e7275fdad68af3",
    "train_600K.xyz": "180c2538508f7810a623c279426f44953ee7cfb2af77e48ea3986ff97645a71c",
    "test_MD_300K.xyz": "2291f3186a3cc6a5e05e92952c84a9237ca53f862d78fd3316a769360719ec43",
    "test_MD_600K.xyz": "d5a5bba154ec43f915eb7529f86ec3af60e6f911743859daba030181a0378ff7",
    "test_dihedral.xyz": "0c2246a593579de5a4450698d5f4ba5802b095824b7f211aa5889339967c6809",
    "test_H_transfer.xyz": "ea4d76c79cf4cfccd2f93eaf755172b0b648886c4907eb0f82dff07a77530743",
}

if __name__ == "__main__":
    sys.exit(fetch_3bpa.main(__doc__, f"{fetch_3bpa.REPOSITORY}dataset_acac/", SHA256))
