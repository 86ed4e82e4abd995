"""A small case in the layout of TROTS, which the test writes in both versions of `.mat`; its data set itself cannot be had here.

Three weights; a target of two rows, an organ of two, a mean of a third structure. Solved by hand.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from scipy.sparse import csc_matrix

from torchimpt.checks import InputError
from torchimpt.io.trots import read_trots_file
from torchimpt.migration.trots import read_trots

TARGET = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
ORGAN = np.array([[0.5, 0.0, 0.0], [0.0, 0.25, 0.25]])
MEAN = np.array([[0.2, 0.2, 0.5]])

MATRICES = [
    {"Name": "CTV", "Type": 0.0, "A": csc_matrix(TARGET), "b": 0.0, "c": np.zeros(0)},
    {"Name": "unused", "Type": 0.0, "A": np.ones((4, 3)), "b": 0.0, "c": np.zeros(0)},
    {"Name": "Cord", "Type": 0.0, "A": ORGAN, "b": 0.0, "c": np.zeros(0)},
    {"Name": "Body (mean)", "Type": 0.0, "A": MEAN, "b": 0.0, "c": np.zeros(0)},
]


def entry(name: str, matrix: int, objective: float, **more: Any) -> dict[str, Any]:
    """An element of `problem`, fields as in the data set."""
    row = {
        "dataID": float(matrix), "Name": name, "Minimise": 1.0, "Type": 1.0, "Objective": objective, "Sufficient": np.zeros(0),
        "Weight": 1.0, "Priority": 1.0, "Parameters": np.zeros(0), "Active": 1.0, "IsConstraint": False,
    }  # fmt: skip
    return row | more


PROBLEM = [
    entry("CTV", 1, 60.0, Minimise=0.0, IsConstraint=True, Weight=0.0),
    entry("CTV", 1, 66.0, IsConstraint=True),
    entry("Cord", 3, 12.0, Weight=5.0),
    entry("Body", 4, 0.0, Weight=2.0),
    entry("unused", 2, 1.0, Active=0.0),
]
SOLUTION = np.array([60.0, 60.0, 0.0])


def old(path: Path, problem: list[dict], matrices: list[dict], solution: Any = SOLUTION) -> Path:
    """As MATLAB saves it with `-v7`."""

    def structs(rows: list[dict]) -> np.ndarray:
        found = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
        for i, row in enumerate(rows):
            found[0, i] = tuple(row.values())
        return found

    savemat(path, {"problem": structs(problem), "data": {"matrix": structs(matrices)}, "solutionX": np.asarray(solution)[:, None]})
    return path


def new(path: Path, problem: list[dict], matrices: list[dict], solution: Any = SOLUTION) -> Path:
    """As MATLAB saves it with `-v7.3`: HDF5 behind 512 bytes, struct arrays as fields of references, axes reversed."""
    h5py = pytest.importorskip("h5py", reason="files of version 7.3 take h5py: pip install 'torchimpt[trots]'")
    with h5py.File(path, "w", userblock_size=512) as file:

        def put(place: Any, name: str, value: Any) -> Any:
            if isinstance(value, csc_matrix):
                node = place.create_group(name)
                node.attrs["MATLAB_sparse"], node.attrs["MATLAB_class"] = np.uint64(value.shape[0]), np.bytes_("double")
                node["data"], node["ir"], node["jc"] = value.data, value.indices.astype(np.uint64), value.indptr.astype(np.uint64)
            elif isinstance(value, str):
                node = place.create_dataset(name, data=np.array([[ord(c)] for c in value], dtype=np.uint16))
                node.attrs["MATLAB_class"] = np.bytes_("char")
            elif np.size(value) == 0:
                node = place.create_dataset(name, data=np.zeros(2, dtype=np.uint64))
                node.attrs["MATLAB_class"], node.attrs["MATLAB_empty"] = np.bytes_("double"), np.uint8(1)
            else:
                kind = np.uint8 if isinstance(value, bool) else np.float64
                node = place.create_dataset(name, data=np.atleast_2d(np.asarray(value, dtype=kind)).T)
                node.attrs["MATLAB_class"] = np.bytes_("logical" if isinstance(value, bool) else "double")
            return node

        def structs(place: Any, name: str, rows: list[dict]) -> None:
            group, heap = place.create_group(name), file.require_group("#refs#")
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            if len(rows) == 1:
                for key, value in rows[0].items():
                    put(group, key, value)
                return
            for key in rows[0]:
                references = [[put(heap, f"{name}{key}{i}", row[key]).ref] for i, row in enumerate(rows)]
                group.create_dataset(key, data=np.array(references, dtype=object), dtype=h5py.ref_dtype)

        structs(file, "problem", problem)
        structs(file.create_group("data"), "matrix", matrices)
        put(file, "solutionX", np.asarray(solution)[:, None])
    return path


def _beyond() -> csc_matrix:
    """A matrix with an entry in a row that it does not have."""
    found = csc_matrix(TARGET)
    found.indices[0] = 7
    return found


both = pytest.mark.parametrize("write", [old, new])


@both
def test_what_the_file_holds(tmp_path: Path, write: Any) -> None:
    found = read_trots_file(write(tmp_path / "case.mat", PROBLEM, MATRICES))
    assert [(e.name, e.kind, e.minimise, e.constraint, e.objective) for e in found.entries] == [
        ("CTV", "linear", False, True, 60.0), ("CTV", "linear", True, True, 66.0), ("Cord", "linear", True, False, 12.0),
        ("Body", "linear", True, False, 0.0),
    ]  # fmt: skip
    assert set(found.matrices) == {1, 3, 4}, "matrices of inactive entries are not read"
    assert (found.matrices[1].toarray() == TARGET).all() and (found.matrices[3].toarray() == ORGAN).all()
    assert (found.matrices[4].toarray() == MEAN).all() and found.solution.tolist() == SOLUTION.tolist()


@both
def test_terms_and_doses(tmp_path: Path, write: Any) -> None:
    case = read_trots(write(tmp_path / "case.mat", PROBLEM, MATRICES), dtype=torch.float64)
    assert [(t.kind, t.roi, t.dose, t.weight, t.constraint) for t in case.terms] == [
        ("min_dose", "CTV", 60.0, 1.0, True), ("max_dose", "CTV", 66.0, 1.0, True), ("max_dose", "Cord", 12.0, 5.0, False),
        ("mean_dose", "Body", 0.0, 2.0, False),
    ]  # fmt: skip
    weight = torch.tensor([40.0, 60.0, 10.0], dtype=torch.float64)
    dose = case.dose.forward(weight)[0].numpy()
    for own, matrix in zip(case.rows, (TARGET, TARGET, ORGAN, MEAN), strict=True):
        assert np.allclose(dose[own], matrix @ weight.numpy(), rtol=1e-15)
    residual = torch.arange(5.0, dtype=torch.float64)[None]
    assert np.allclose(case.dose.adjoint(residual).numpy(), np.vstack((TARGET, ORGAN, MEAN)).T @ residual[0].numpy(), rtol=1e-15)
    # cord doses 20 and 17.5, mean 25: without the constraints 5 (8^2 + 5.5^2) / 2 + 2 * 25^2
    assert sum(row["value"] for row in case.objective.terms(case.dose.forward(weight))) == pytest.approx(235.625 + 1250.0)


def test_the_constrained_minimum(tmp_path: Path) -> None:
    """The target's two rows get 60 Gy each: by their own weight at 0.2 Gy of the body's mean for 1 Gy, or by the third weight, which gives
    both 0.5 Gy for 0.5 Gy of the mean. So the third weight is none.
    """
    case = read_trots(old(tmp_path / "case.mat", [PROBLEM[0], PROBLEM[3]], MATRICES), dtype=torch.float64)
    solution = case.minimize(tolerance=1e-9, max_iterations=2000, feasibility=1e-3)
    assert solution.converged
    assert torch.allclose(solution.x, torch.from_numpy(SOLUTION), atol=0.01)  # feasibility over the rows' 1 and more
    assert case.solution is not None and torch.allclose(solution.x, case.solution, atol=0.01)


def test_gEUD_and_what_has_no_counterpart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problem = [
        *PROBLEM[:1],
        entry("Cord", 3, 10.0, Type=3.0, Parameters=np.array([[4.0]])),
        entry("CTV", 1, 1.0, Type=4.0, Parameters=np.array([[60.0, 0.8]])),
        entry("Smooth", 3, 1.0, Type=2.0),
        entry("Rectum", 3, 1.0, Type=6.0),
    ]
    path = old(tmp_path / "case.mat", problem, MATRICES)
    with pytest.raises(InputError, match="LTCP of CTV, quadratic of Smooth, chain of Rectum have no counterpart here"):
        read_trots(path)
    with caplog.at_level(logging.WARNING):
        case = read_trots(path, strict=False)
    assert [t.kind for t in case.terms] == ["min_dose", "gEUD"] and case.terms[1].a == 4.0
    assert case.left_out == ("LTCP of CTV", "quadratic of Smooth", "chain of Rectum") and "left out: LTCP of CTV" in caplog.text


@both
def test_one_entry_and_one_matrix(tmp_path: Path, write: Any) -> None:
    """MATLAB stores a struct of one element otherwise than an array of several."""
    case = read_trots(write(tmp_path / "case.mat", PROBLEM[:1], MATRICES[:1]))
    assert [t.kind for t in case.terms] == ["min_dose"] and case.n_weights == 3


@pytest.mark.parametrize(
    ("problem", "matrices", "message"),
    [
        ([entry("CTV", 9, 60.0)], MATRICES, "'CTV' has dataID 9, but data.matrix has 4 elements"),
        ([entry("CTV", 1, 60.0, Active=0.0)], MATRICES, "no active entry"),
        ([entry("CTV", 1, np.nan)], MATRICES, "Objective of 'CTV' must be one finite number"),
        ([entry("CTV", 1, -1.0)], MATRICES, "dose must be zero or more"),
        ([entry("CTV", 1, 60.0)], [{**MATRICES[0], "b": 3.0}], "doses given already"),
        ([entry("CTV", 1, 60.0)], [{**MATRICES[0], "A": _beyond()}], "is damaged"),
        ([entry("CTV", 1, 60.0)], [{**MATRICES[0], "A": np.full((2, 3), np.nan)}], "must be a matrix of finite numbers"),
        ([entry("CTV", 1, 60.0), entry("Cord", 2, 1.0)], [MATRICES[0], {**MATRICES[1], "A": np.ones((2, 4))}], "3, 4 columns"),
        ([{key: value for key, value in entry("CTV", 1, 60.0).items() if key != "Minimise"}], MATRICES, "no field 'Minimise'"),
        ([entry("CTV", 1, 60.0)], [{"Name": "CTV"}], r"data\.matrix\(1\) has no field 'A'"),
    ],
)
def test_broken_cases_are_named(tmp_path: Path, problem: list[dict], matrices: list[dict], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_trots(old(tmp_path / "case.mat", problem, matrices))
    assert "case.mat" in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    savemat(tmp_path / "other.mat", {"a": 1.0})
    with pytest.raises(InputError, match="no variable problem and data, so it is no TROTS case"):
        read_trots(tmp_path / "other.mat")
    with pytest.raises(InputError, match=r"no file .*none\.mat"):
        read_trots(tmp_path / "none.mat")
    (tmp_path / "cut.mat").write_bytes(b"\0" * 512 + b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(InputError, match=r"takes h5py|cannot read|cannot be read"):
        read_trots(tmp_path / "cut.mat")
