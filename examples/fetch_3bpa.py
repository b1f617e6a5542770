"""Download the published 3BPA data set, or check a copy you already have.

Kovács et al., J. Chem. Theory Comput. 2021, 17, 7696, distributed by its authors (MIT licence) in
the GitHub repository davkovacs/BOTNet-datasets, folder `dataset_3BPA`: DFT energies (eV) and
forces (eV/Å) of 3-(benzyloxy)pyridin-2-amine, 27 atoms, in extended XYZ.

The SHA-256 of the training files and of the isolated atoms are known and enforced. Those of the
four test files are not known to this project: for them only the structure is checked (whole frames
of 27 atoms, an energy and forces in each) and the SHA-256 found is printed, for you to compare.

Usage:
    python fetch_3bpa.py DIR                              download what DIR lacks, check all
    python fetch_3bpa.py DIR --verify                     check only, no network
    python fetch_3bpa.py DIR --files train_300K.xyz ...   only these files

Exit status: 0 if every file is there and passes, 1 otherwise. No third-party package is needed.
"""

import argparse
import hashlib
import http.client
import math
import sys
import urllib.error
import urllib.request
from pathlib import Path

COMMIT = "29e6d467317e4b5967b7ea5cbee54de953fa0d45"
REPOSITORY = f"https://raw.githubusercontent.com/davkovacs/BOTNet-datasets/{COMMIT}/"
ATOMS = 27
TIMEOUT = 60  # s without an answer

# SHA-256 of each file, `None` where this project does not know it.
SHA256 = {
    "iso_atoms.xyz": "e12a2465a2612bf38fd5dabdf64d4b57fc58ce9610a858c54ea1142d517c053f",
    "train_300K.xyz": "d109971fab90e2231ad931a83eb704c8d940f5c7d7a8de27fe3b84ea18634c0a",
    "train_mixedT.xyz": "bc108532964b2ed259eaaabf82e5dfaffa5bda9ac384fc2afabcce192a49250b",
    "test_300K.xyz": None,
    "test_600K.xyz": None,
    "test_1200K.xyz": None,
    "test_dih.xyz": None,
}


class DataError(Exception):
    """A file is missing, cannot be downloaded, or is not what it should be."""


def count_frames(text):
    """Number of frames of an extended XYZ text; raises `DataError` if one is not labelled 3BPA."""
    lines = text.rstrip().splitlines()
    size = ATOMS + 2
    if not lines:
        raise DataError("the file is empty")
    for start in range(0, len(lines), size):
        frame = lines[start : start + size]
        where = f"frame {start // size} (line {start + 1})"
        if frame[0].strip() != str(ATOMS):
            raise DataError(f"{where}: expected {ATOMS} atoms, found {frame[0].strip()[:40]!r}")
        if len(frame) < size:
            raise DataError(f"{where}: the file ends within the frame")
        if " energy=" not in f" {frame[1]}" or ":forces:R:3" not in frame[1]:
            raise DataError(f"{where}: no `energy=` or no `forces` column in the comment line")
        for line in frame[2:]:
            try:
                numbers = [float(word) for word in line.split()[1:]]
            except ValueError:
                numbers = []
            if len(numbers) < 6 or not all(map(math.isfinite, numbers)):
                raise DataError(f"{where}: not an atom with position and forces: {line[:40]!r}")
    return len(lines) // size


def check(data, known):
    """Check the bytes of one file; returns what was found, raises `DataError`."""
    found = hashlib.sha256(data).hexdigest()
    if known is not None:
        if found != known:
            raise DataError(f"wrong checksum: SHA-256 is {found}, the published file has {known}")
        return "SHA-256 matches the published file"
    try:
        frames = count_frames(data.decode())
    except UnicodeDecodeError:
        raise DataError("not a text file") from None
    return f"{frames} whole frames; published checksum not known here, SHA-256 found: {found}"


def download(url):
    """The bytes of one published file."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        raise DataError(f"the server answered {error.code} {error.reason}: {url}") from None
    except (OSError, http.client.HTTPException) as error:  # includes URLError and time-outs
        reason = getattr(error, "reason", error)
        raise DataError(f"download failed ({reason}); is there a network? {url}") from None


def obtain(path, url, known, offline):
    """Check one file, after downloading it if it is missing and that is allowed."""
    if path.exists():
        try:
            return check(path.read_bytes(), known)
        except DataError as error:
            raise DataError(f"{error} (kept as it is; delete it to download it)") from None
    if offline:
        raise DataError(f"missing from {path.parent}")
    data = download(url)
    found = check(data, known)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return f"downloaded; {found}"


def main(description=__doc__, source=f"{REPOSITORY}dataset_3BPA/", checksums=SHA256):
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--verify", action="store_true", help="check only, download nothing")
    parser.add_argument(
        "--files", nargs="+", choices=checksums, default=list(checksums), metavar="FILE"
    )
    args = parser.parse_args()
    failed = 0
    for name in args.files:
        try:
            found = obtain(args.folder / name, source + name, checksums[name], args.verify)
            print(f"ok      {name}: {found}", flush=True)
        except (DataError, OSError) as error:
            failed += 1
            print(f"FAILED  {name}: {error}", file=sys.stderr, flush=True)
    if failed:
        print(f"{failed} of {len(args.files)} files failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
