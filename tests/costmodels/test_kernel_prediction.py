"""Kernel rows as text: every row is answered or told why not, in order."""

import pytest

from costmodels.kernel_prediction import predict_kernel_rows

GEMM = {"op": "gemm", "gpu": "H100", "dtype": "bf16", "m": "4096", "n": "4096", "k": "4096"}
ATTENTION = {
    "op": "attention_prefill", "gpu": "H100", "dtype": "bf16", "batch": "1", "heads": "32", "kv_heads": "8",
    "q_len": "4096", "kv_len": "4096", "head_dim": "128", "causal": "true", "implementation": "flash2",
}  # fmt: skip
REDUCE = {"op": "all_reduce", "gpu": "H200", "bytes": "1073741824", "ranks": "2", "ranks_per_node": "8"}


def seconds(row: dict[str, str]) -> float:
    """The predicted time of one row that must be good."""
    (answer,) = predict_kernel_rows([row])
    assert answer["error"] == ""
    return float(answer["time_s"])


class TestAnswers:
    @pytest.mark.parametrize(
        "row",
        [
            GEMM,
            GEMM | {"dtype": "fp8", "gpu": "H200", "launch": "eager", "cache": "cold"},
            ATTENTION,
            ATTENTION | {"op": "attention_backward", "implementation": "cudnn"},
            ATTENTION | {"op": "attention_decode", "q_len": "1", "causal": "false", "implementation": ""},
            REDUCE,
            REDUCE | {"op": "send_recv"},
            {"op": "rms_norm", "gpu": "H100", "dtype": "bf16", "m": "4096", "n": "4096"},
            {"op": "softmax", "gpu": "B200", "dtype": "bf16", "rows": "4096", "cols": "4096"},
            {"op": "copy", "gpu": "A100-80GB", "dtype": "bf16", "bytes": "1e9"},
        ],
    )
    def test_a_good_row_has_a_time_with_an_interval(self, row: dict[str, str]) -> None:
        (answer,) = predict_kernel_rows([row])
        assert answer["error"] == ""
        assert 0 < float(answer["time_s_low"]) <= float(answer["time_s"]) <= float(answer["time_s_high"])
        assert answer["evidence"] in ("measured", "interpolated", "extrapolated", "first-principles")

    def test_answers_do_not_depend_on_their_company_or_order(self) -> None:
        rows = [GEMM, REDUCE, GEMM | {"m": "1"}, ATTENTION, GEMM | {"gpu": "H200"}]
        together = predict_kernel_rows(rows)
        assert [float(answer["time_s"]) for answer in together] == pytest.approx([seconds(row) for row in rows], rel=1e-12)
        assert predict_kernel_rows(rows[::-1])[::-1] == together

    def test_none_is_a_batch(self) -> None:
        assert predict_kernel_rows([]) == []

    def test_unknown_columns_and_aliases_are_fine(self) -> None:
        assert seconds(GEMM | {"gpu": "h100_80gb-sxm", "dtype": "bfloat16", "colour": "blue"}) == seconds(GEMM)


class TestPhysics:
    def test_eight_bit_products_are_faster(self) -> None:
        assert seconds(GEMM | {"dtype": "fp8"}) < 0.75 * seconds(GEMM)

    def test_generations_of_attention_differ(self) -> None:
        times = [seconds(ATTENTION | {"implementation": name}) for name in ("flash1", "flash2", "flash3")]
        assert times[0] > 1.3 * times[1]
        assert times[1] > 1.3 * times[2]

    def test_causal_attention_is_about_half(self) -> None:
        ratio = seconds(ATTENTION) / seconds(ATTENTION | {"causal": "false"})
        assert 0.4 < ratio < 0.75

    def test_decoding_reads_the_cache_of_the_true_kv_heads(self) -> None:
        row = ATTENTION | {
            "op": "attention_decode",
            "q_len": "1",
            "kv_len": "32768",
            "batch": "16",
            "implementation": "default",
        }
        assert seconds(row | {"kv_heads": "32"}) > 2.5 * seconds(row)

    def test_a_cold_cache_costs(self) -> None:
        small = GEMM | {"m": "1", "n": "2048", "k": "2048"}
        assert seconds(small | {"cache": "cold"}) > seconds(small)

    def test_a_small_call_from_python_takes_the_host_s_time(self) -> None:
        assert seconds(REDUCE | {"bytes": "4096", "launch": "eager"}) > 2 * seconds(REDUCE | {"bytes": "4096"})

    def test_all_reduce_of_a_gigabyte_is_near_the_link_s_rate(self) -> None:
        assert 2**30 / seconds(REDUCE) == pytest.approx(330e9, rel=0.08)


class TestBadRows:
    @pytest.mark.parametrize(
        ("row", "why"),
        [
            ({}, "unknown op ''"),
            (GEMM | {"op": "gem"}, "did you mean gemm"),
            (GEMM | {"gpu": "H10"}, "no device is called 'H10'"),
            (GEMM | {"m": ""}, "m is missing"),
            (GEMM | {"n": "-1"}, "n is -1, which is not finite and positive"),
            (GEMM | {"k": "nan"}, "k is nan"),
            (GEMM | {"k": "wide"}, "k is 'wide', not a number"),
            (GEMM | {"dtype": "bf61"}, "dtype 'bf61' is none of"),
            (GEMM | {"launch": "rocket"}, "launch 'rocket' is none of"),
            (ATTENTION | {"implementation": "flash9"}, "implementation 'flash9' is none of"),
            (ATTENTION | {"causal": "maybe"}, "neither true nor false"),
            (REDUCE | {"ranks": ""}, "ranks is missing"),
        ],
    )
    def test_a_bad_row_says_why_and_its_neighbours_are_answered(self, row: dict[str, str], why: str) -> None:
        good, bad, also = predict_kernel_rows([GEMM, row, ATTENTION])
        assert why in str(bad["error"])
        assert bad["time_s"] == ""
        assert good["error"] == also["error"] == ""
