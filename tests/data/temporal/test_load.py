from pathlib import Path

import numpy as np
import pytest
import torch

from polytask.data.temporal import load_events
from polytask.errors import InputError

HEADER = "user_id,item_id,timestamp,state_label,comma_separated_list_of_features\n"


def csv(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "events.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def npz(folder: Path, **arrays: object) -> Path:
    given = {"src": np.array([1, 2, 1], np.uint16), "dst": np.array([2, 1, 1], np.uint16), "ts": np.array([5, 5, 7])}
    np.savez(folder / "events.npz", **(given | arrays))  # type: ignore[arg-type]
    return folder / "events.npz"


def test_jodie_files_number_items_after_users(tmp_path: Path) -> None:
    path = csv(tmp_path, "0,0,0.0,0,0.5,-1", "2,1,3.882,1,0.25,2e-3", "1,0,3.882,0,0,0")
    events = load_events(path)
    assert events.source.tolist() == [0, 2, 1] and events.destination.tolist() == [3, 4, 3] and events.nodes == 5
    assert events.time.tolist() == [0.0, 3.882, 3.882]
    assert events.features is not None and events.labels is not None
    torch.testing.assert_close(events.features, torch.tensor([[0.5, -1], [0.25, 0.002], [0, 0]]))
    assert events.labels.tolist() == [0, 1, 0]
    assert load_events(path, bipartite=False).destination.tolist() == [0, 1, 0]


def test_header_label_and_features_may_be_left_out(tmp_path: Path) -> None:
    events = load_events(csv(tmp_path, "0,0,1", "1,1,2", header=""))
    assert len(events) == 2 and events.features is None and events.labels is None


def test_npz_files_keep_their_numbers(tmp_path: Path) -> None:
    events = load_events(npz(tmp_path, features=np.ones((3, 2))))
    assert events.source.tolist() == [1, 2, 1] and events.nodes == 3 and events.time.tolist() == [5, 5, 7]
    assert events.width == 2


def test_sorting_is_stable_and_keeps_the_rows(tmp_path: Path) -> None:
    events = load_events(csv(tmp_path, "0,0,9", "1,0,2", "2,0,9", "3,0,2"), sort=True)
    assert events.rows.tolist() == [2, 4, 1, 3] and events.source.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (["0,0,3", "1,0,5", "2,0,4"], {}, r"events\.csv: row 3: time 4\.0 after 5\.0, .*sort=True"),
        (["0,0,3", "1,0,3"], {"ties": False}, r"row 2: time 3\.0, as in row 1, .*ties=True"),
        (["0,0,3", "1,1,3"], {"loops": False, "bipartite": False}, r"row 1: an event from 0 to itself"),
        (["0,0,3", "2147483648,0,4"], {}, r"row 2: source 2147483648, expected a node from 0 to 2147483647"),
        (["0,0,3", "0,99999999999999999999,4"], {}, r"row 2, item: '99999999999999999999', expected an integer"),
        (["0,0,3", "0,-1,4"], {}, r"row 2: destination -1"),
        (["0,0,3", "0,0,soon"], {}, r"row 2, timestamp: 'soon', expected a number"),
        (["0,0,nan", "0,0,2"], {}, r"row 1: time nan, expected a finite number"),
        (["0,0,nan", "0,0,2"], {"sort": True}, r"row 1: time nan, expected a finite number"),
        (["0,0,3,0,1", "0,0,4,0"], {}, r"row 2, feature 1: missing"),
        (["0,0,3,0,1", "0,0,4,0,1,2"], {}, r"row 2: 6 fields, expected 5, as row 1 has"),
        (["0,0", "0,0"], {}, r"row 1: 2 fields, expected at least user, item and timestamp"),
        ([], {}, r"events\.csv: no events"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_row(
    tmp_path: Path, rows: list[str], settings: dict[str, bool], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_events(csv(tmp_path, *rows), **settings)


def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"events\.npz: row 2: time 4\.0 after 5\.0"):
        load_events(npz(tmp_path, ts=np.array([5, 4, 7])))
    with pytest.raises(InputError, match=r"array 'src': \(3,\) float64, expected integers"):
        load_events(npz(tmp_path, src=np.zeros(3)))
    with pytest.raises(InputError, match=r"row 1: source 9223372036854775807"):
        load_events(npz(tmp_path, src=np.array([2**63 + 5, 0, 0], np.uint64)))
    with pytest.raises(InputError, match="2 sources of 3 events"):
        load_events(npz(tmp_path, src=np.array([1, 2])))
    with pytest.raises(InputError, match=r"events\.npz: row 2: feature inf, expected finite numbers"):
        load_events(npz(tmp_path, features=np.array([[0, 1], [np.inf, 1], [0, 0]])))
    with pytest.raises(InputError, match=r"array 'features': \(3,\) float64, expected numbers of shape \(E, F\)"):
        load_events(npz(tmp_path, features=np.ones(3)))
    with pytest.raises(InputError, match=r"array 'labels': \(3,\) <U1, expected numbers of shape \(E,\)"):
        load_events(npz(tmp_path, labels=np.full(3, "a")))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    for name in ("broken.npz", "none.csv"):
        with pytest.raises(InputError, match=name):
            load_events(tmp_path / name)
    (tmp_path / "events.txt").touch()
    with pytest.raises(InputError, match="unknown type of file"):
        load_events(tmp_path / "events.txt")
