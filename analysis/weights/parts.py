"""Parts: the differences of one group of tensors as a Zarr group, published whole or not at all.

    parts/0003/<attempt>/sigma, residual           float32 [t], a row per triple of the group, matrix after matrix
    parts/0003/<attempt>/left_576, right_1536, …   float32 [rows, length], the vectors of one length, a row per triple
    parts/0003/receipt.json                        published last, by exclusive create; the only thing readers trust

An attempt is written under a name of its own and synced before its receipt is created; the first receipt wins.
Arrays of whole groups: two files for each of four arrays of each matrix would cost more than the arithmetic.
"""

import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from analysis.weights.matrix_delta import MatrixDelta, VectorDelta
from analysis.weights.roles import Role
from store.arrays import encode_array, open_array, read_rows
from store.cell import GROUP
from store.digest import digest_array, digest_json
from store.errors import DamageError
from store.location import Location
from store.names import check_name
from store.record import decode_record, encode_record

ARRAYS = ("sigma", "left", "right", "residual")  # the fields of a MatrixDelta that are kept as Zarr


@dataclass(frozen=True, kw_only=True)
class Part:
    """The differences of one group.

    cosines  between base and tuned, of the matrices where it is a number; none for an adapter
    """

    group: int
    matrices: tuple[MatrixDelta, ...]
    vectors: tuple[VectorDelta, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a matrix's triples lie in the arrays of its part: first rows, and how many."""

    triple: int
    triples: int
    left: int
    right: int


@dataclass(frozen=True, kw_only=True)
class PublishedPart:
    """A part as it was read back; `digest` is of its content, `folder` its Zarr group, `places` by matrix."""

    part: Part
    digest: str
    folder: str
    places: tuple[Place, ...]


def part_folder(group: int) -> str:
    return f"parts/{group:04d}"


def receipt_path(group: int) -> str:
    return f"{part_folder(group)}/receipt.json"


def publish_part(location: Location, part: Part) -> None:
    """Writes a part and publishes it, unless another attempt did. Raises IncompleteError where the disk refuses."""
    attempt = f"{os.getpid()}-{secrets.token_hex(6)}"
    folder = f"{part_folder(part.group)}/{attempt}"
    files = dict.fromkeys(_group_files(folder), GROUP)
    digests, documents = {}, {}
    for name, values in _stacked(part.matrices).items():
        encoded = encode_array(values)
        files |= {f"{folder}/{name}/{path}": file.data for path, file in encoded.files.items()}
        digests[name], documents[name] = encoded.digest, encoded.files["zarr.json"].sha256
    location.write(files)
    content = {
        "matrices": [_described(matrix) for matrix in part.matrices],
        "vectors": [asdict(vector) for vector in part.vectors],
        "cosines": list(part.cosines),
        "arrays": digests,
    }
    record = {"group": part.group, "attempt": attempt, "content": content, "documents": documents}
    if not location.create(receipt_path(part.group), encode_record(record)):
        _delete(location, folder)


def read_part(location: Location, group: int) -> PublishedPart | None:
    """A published part, every checksum checked; None where there is none.

    Raises DamageError, in one line, where anything of it is not what was written.
    """
    path = receipt_path(group)
    try:
        data = location.read(path)
    except FileNotFoundError:
        return None
    try:
        receipt = decode_record(data, path)
        content = receipt["content"]
        folder = f"{part_folder(group)}/{check_name(receipt['attempt'], 'attempt')}"
        places = tuple(_places(content["matrices"]))
        arrays = {}
        if any(location.read(file) != GROUP for file in _group_files(folder)):
            raise DamageError(folder)
        for name, digest in content["arrays"].items():
            where = f"{folder}/{check_name(name, 'array')}"
            array = open_array(location, where, receipt["documents"][name])
            arrays[name] = read_rows(array, slice(None), where)
            if digest_array(arrays[name]) != digest:
                raise DamageError(where)
        part = Part(
            group=group,
            matrices=tuple(
                _matrix(described, place, arrays) for described, place in zip(content["matrices"], places, strict=True)
            ),
            vectors=tuple(VectorDelta(**vector) for vector in content["vectors"]),
            cosines=tuple(content["cosines"]),
        )
    except (DamageError, FileNotFoundError) as error:
        raise damaged(f"{location.url}/{part_folder(group)}") from error
    return PublishedPart(part=part, digest=digest_json(content), folder=folder, places=places)


def withdraw_part(location: Location, group: int) -> None:
    """Removes a part: its receipt first, so that no reader trusts what is being deleted."""
    location.delete(receipt_path(group))
    _delete(location, part_folder(group))


def remove_losers(location: Location, published: Sequence[PublishedPart]) -> None:
    """Removes the attempts that no receipt names, once every part is published."""
    kept = {part.folder for part in published}
    for path in list(location.list("parts")):
        if path.count("/") > 2 and "/".join(path.split("/")[:3]) not in kept:
            location.delete(path)


def damaged(where: str) -> DamageError:
    return DamageError(f"{where} is damaged: run the same 'thresher weights' again, it makes anew what is damaged")


def _group_files(folder: str) -> list[str]:
    """Every folder above an array is a Zarr group, so that `zarr.open` walks the whole result."""
    above = folder.split("/")
    return ["/".join([*above[:depth], "zarr.json"]) for depth in range(1, len(above) + 1)]


def _delete(location: Location, folder: str) -> None:
    for path in list(location.list(folder)):
        location.delete(path)


def _stacked(matrices: Sequence[MatrixDelta]) -> dict[str, np.ndarray]:
    """The arrays of a part, by name; none without rows."""
    rows: dict[str, list[np.ndarray]] = {}
    for matrix in matrices:
        if len(matrix.sigma):
            rows.setdefault("sigma", []).append(matrix.sigma)
            rows.setdefault("residual", []).append(matrix.residual)
            rows.setdefault(f"left_{matrix.left.shape[0]}", []).append(matrix.left.T)
            rows.setdefault(f"right_{matrix.right.shape[0]}", []).append(matrix.right.T)
    return {name: np.concatenate(values).astype(np.float32, copy=False) for name, values in rows.items()}


def _described(matrix: MatrixDelta) -> dict[str, Any]:
    """JSON of all of a matrix that is not an array, and the sizes of its arrays."""
    plain = {f.name: getattr(matrix, f.name) for f in fields(matrix) if f.name not in ARRAYS}
    sizes = {"triples": len(matrix.sigma), "outputs": matrix.left.shape[0], "inputs": matrix.right.shape[0]}
    return {**plain, "role": asdict(matrix.role), "sizes": sizes}


def _places(described: Sequence[Mapping[str, Any]]) -> Iterator[Place]:
    """Where the triples of each matrix lie: in the order of the matrices, vectors beside those of their length."""
    used: Counter[str] = Counter()
    for matrix in described:
        sizes = matrix["sizes"]
        left, right = f"left_{sizes['outputs']}", f"right_{sizes['inputs']}"
        yield Place(triple=used["sigma"], triples=sizes["triples"], left=used[left], right=used[right])
        used.update(dict.fromkeys(("sigma", left, right), sizes["triples"]))


def _matrix(described: Mapping[str, Any], place: Place, arrays: Mapping[str, np.ndarray]) -> MatrixDelta:
    sizes = described["sizes"]
    plain = {name: _frozen(value) for name, value in described.items() if name not in ("sizes", "role")}

    def rows(name: str, first: int, *shape: int) -> np.ndarray:
        if not place.triples:
            return np.empty((0, *shape), np.float32)
        return arrays[name][first : first + place.triples].copy()  # a view would keep the arrays of the whole part

    return MatrixDelta(
        **plain,
        role=Role(**described["role"]),
        sigma=rows("sigma", place.triple),
        residual=rows("residual", place.triple),
        left=rows(f"left_{sizes['outputs']}", place.left, sizes["outputs"]).T,
        right=rows(f"right_{sizes['inputs']}", place.right, sizes["inputs"]).T,
    )


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
