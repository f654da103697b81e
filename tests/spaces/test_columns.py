"""Columns and their distinct combinations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.columns import Bindings, Columns, UnboundSymbol, distinct

TABLES = st.integers(0, 40).flatmap(
    lambda n: st.dictionaries(
        st.sampled_from(["tensor", "data", "micro_batch", "recompute"]),
        st.lists(st.integers(-3, 3), min_size=n, max_size=n),
        min_size=1,
    )
)


def columns_of(table: dict[str, list[int]]) -> Columns:
    return Columns.from_values({symbol: np.array(values, np.int64) for symbol, values in table.items()})


@given(TABLES)
def test_columns_give_back_the_values_they_were_made_from(table: dict[str, list[int]]) -> None:
    columns = columns_of(table)
    for symbol, values in table.items():
        assert columns[symbol].tolist() == values
    assert [columns.row(i) for i in range(len(columns))] == [
        {symbol: values[i] for symbol, values in table.items()} for i in range(len(columns))
    ]


@given(TABLES, st.data())
def test_distinct_combinations_gather_to_the_rows_they_came_from(table: dict[str, list[int]], data: st.DataObject) -> None:
    columns = columns_of(table)
    reads = data.draw(st.lists(st.sampled_from([*table, "not bound"]), unique=True))
    combinations, index = distinct(columns, reads)
    read = [symbol for symbol in reads if symbol in table]
    for symbol in read:
        assert np.array_equal(combinations[symbol][index], columns[symbol])
    rows = {tuple(values) for values in zip(*(table[symbol] for symbol in read), strict=True)} if read else {()}
    assert len(combinations) == (len(rows) if len(columns) else 0)
    assert set(combinations.levels) == set(read)


@given(TABLES, st.data())
def test_take_picks_the_same_rows_by_index_mask_and_slice(table: dict[str, list[int]], data: st.DataObject) -> None:
    columns = columns_of(table)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(columns), max_size=len(columns))), np.bool_)
    by_mask, by_index = columns.take(mask), columns.take(np.flatnonzero(mask))
    for symbol, values in table.items():
        kept = [value for value, keep in zip(values, mask, strict=True) if keep]
        assert by_mask[symbol].tolist() == by_index[symbol].tolist() == kept
        assert columns.take(slice(1, 3))[symbol].tolist() == values[1:3]


def test_distinct_stays_exact_when_the_combinations_outgrow_64_bits() -> None:
    rng = np.random.default_rng(0)
    columns = Columns.from_values({f"s{i}": rng.permutation(3000) for i in range(8)})
    combinations, index = distinct(columns, columns.levels)
    for symbol in columns.levels:
        assert np.array_equal(combinations[symbol][index], columns[symbol])


def test_one_axis_binds_several_symbols_and_counts_once() -> None:
    values = {"device": np.array([0, 1]), "device.power": np.array([700.0, 1000.0])}
    columns = Columns(
        n=3, codes={"device": np.array([1, 0, 1])}, levels={symbol: ("device", array) for symbol, array in values.items()}
    )
    combinations, index = distinct(columns, ["device.power", "device"])
    assert columns["device.power"].tolist() == [1000.0, 700.0, 1000.0]
    assert len(combinations) == 2
    assert combinations["device.power"][index].tolist() == [1000.0, 700.0, 1000.0]


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="unequal length"):
        Columns.from_values({"tensor": np.arange(2), "data": np.arange(3)})


def test_a_symbol_is_found_in_scalars_or_columns_and_missing_ones_are_named() -> None:
    at = Bindings({"sequence": 4096}, Columns.from_values({"tensor": np.array([1, 2])}))
    assert at["sequence"] == 4096
    assert at["tensor"].tolist() == [1, 2]
    assert at.get("virtual", 1) == 1
    with pytest.raises(UnboundSymbol, match="'hidden' is bound neither"):
        at["hidden"]
