import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.nn.graph.graphs import dense, random_graph

from polytask.errors import InputError
from polytask.nn.graph import CSR, SparseBuffer, adjacency


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=25), st.booleans())
def test_entries_in_any_order_make_the_matrix(entries: list[tuple[int, int]], weighted: bool) -> None:
    rows, columns = torch.tensor(entries, dtype=torch.int64).reshape(-1, 2).unbind(1)
    values = torch.arange(1.0, len(entries) + 1, dtype=torch.float64) if weighted else None
    matrix = CSR.from_entries(rows, columns, (7, 5), values)
    expected = torch.zeros(7, 5, dtype=torch.float64)
    for k, (row, column) in enumerate(entries):
        expected[row, column] = expected[row, column] + k + 1 if weighted else 1.0
    assert torch.equal(dense(matrix), expected)
    assert torch.equal(matrix.keys, matrix.keys.sort().values) and len(matrix.keys.unique()) == len(matrix.keys)
    assert torch.equal(dense(matrix.transposed), expected.T)
    assert torch.equal(matrix.sums().double(), expected.sum(1))
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(matrix @ x, expected @ x)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_products_to_any_order(weighted: bool) -> None:
    graph = random_graph(6, 10, weighted=True)
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    assert graph.values is not None
    values = graph.values.clone().requires_grad_()
    if weighted:
        assert torch.autograd.gradcheck(lambda v, x: graph.with_values(v) @ x, (values, x))
        assert torch.autograd.gradgradcheck(lambda v, x: (graph.with_values(v) @ x).square(), (values, x))
    else:
        assert torch.autograd.gradcheck(lambda x: graph.with_values(None) @ x, (x,))


def test_products_take_the_type_of_the_dense_factor() -> None:
    graph, x = random_graph(weighted=True), torch.randn(12, 4)
    exact = dense(graph) @ x.double()
    assert (graph @ x).dtype == torch.float32
    torch.testing.assert_close((graph @ x).double(), exact, atol=1e-5, rtol=1e-5)
    halved = graph @ x.bfloat16()
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.double(), exact, atol=0.1, rtol=0.05)


def test_a_compiled_product_is_the_same() -> None:
    graph, x = random_graph(), torch.randn(12, 4)
    compiled = torch.compile(lambda x: (graph @ x).relu(), backend="eager")
    torch.testing.assert_close(compiled(x), (graph @ x).relu())


def test_a_graph_without_edges_and_rows_without_entries() -> None:
    empty = adjacency(torch.zeros(0, 2, dtype=torch.int64), 3)
    assert torch.equal(empty @ torch.ones(3, 2), torch.zeros(3, 2))
    assert not empty.find(torch.tensor([0]), torch.tensor([1]))[0].any()
    assert empty.take(torch.tensor([1, 1])).shape == (2, 3)
    assert torch.equal(empty.without(torch.tensor([[0, 1]])).degrees, torch.zeros(3, dtype=torch.int64))


def test_entries_are_found_kept_taken_and_removed() -> None:
    graph = random_graph(weighted=True)
    whole = dense(graph)
    rows, columns = torch.cartesian_prod(torch.arange(12), torch.arange(12)).unbind(1)
    found, place = graph.find(rows, columns)
    assert torch.equal(found.reshape(12, 12), whole != 0)
    assert graph.values is not None and torch.equal(graph.values[place[found]], whole.flatten()[found])
    order = torch.tensor([3, 0, 3])
    assert torch.equal(dense(graph.take(order)), whole[order])
    edge = torch.stack([graph.rows, graph.columns], 1)[:1]
    less = dense(graph.without(torch.cat([edge, torch.tensor([[0, 0]])])))
    i, j = edge[0].tolist()
    assert less[i, j] == less[j, i] == 0 and int((less != whole).sum()) == 2


def test_ids_beyond_32_bits_and_shapes_beyond_63() -> None:
    far = 2**40
    wide = CSR.from_entries(torch.tensor([0, 1, 1]), torch.tensor([far, far, 5]), (2, far + 1))
    assert wide.columns.tolist() == [far, 5, far]
    assert wide.find(torch.tensor([1, 0]), torch.tensor([far, 5]))[0].tolist() == [True, False]
    with pytest.raises(InputError, match=r"2\^63"):
        adjacency(torch.tensor([[0, 1]]), 3_100_000_000)


def test_wrong_nodes_are_named() -> None:
    with pytest.raises(InputError, match=r"edge 1: nodes \[2, 3\], expected ids from 0 to 2"):
        adjacency(torch.tensor([[0, 1], [2, 3]]), 3)
    with pytest.raises(InputError, match="entry 0: column 9, expected 0 to 4"):
        CSR.from_entries(torch.tensor([0]), torch.tensor([9]), (1, 5))


def test_a_buffer_moves_with_its_module_and_is_not_saved() -> None:
    buffer = SparseBuffer(random_graph(weighted=True))
    module = torch.nn.ModuleDict({"graph": buffer}).bfloat16()
    assert buffer.matrix.values is not None and buffer.matrix.values.dtype == torch.bfloat16
    assert buffer.matrix.columns.dtype == torch.int64 and not module.state_dict()
    assert module.to("meta") and buffer.matrix.columns.device.type == "meta"


def test_a_stored_buffer_is_read_back() -> None:
    matrix = random_graph(weighted=True)
    other = CSR(
        torch.zeros(matrix.height + 1, dtype=torch.int64), matrix.columns, matrix.width, torch.ones(len(matrix.columns))
    )
    buffer, again = SparseBuffer(matrix, stored=True), SparseBuffer(other, stored=True)
    assert int(again.matrix.degrees.sum()) == 0  # computed of the places that it has so far
    again.load_state_dict(buffer.state_dict())
    assert torch.equal(again.matrix @ torch.eye(matrix.width), matrix @ torch.eye(matrix.width))
    assert torch.equal(again.matrix.keys, matrix.keys)
