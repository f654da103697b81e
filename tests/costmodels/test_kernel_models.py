"""Kernel models: the contract of the protocol, physics, and fits that are never used on other data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from costmodels.kernel_models import features
from costmodels.kernel_models.calibrated import Calibrated, answer
from costmodels.kernel_models.domain import clipped, domain_of, inside
from costmodels.kernel_models.fitted import FOLDER, Fit, is_current, read_fit
from costmodels.kernel_models.forms import FORMS, flash_parts, prepared, prior_time, variant
from costmodels.kernel_models.groups import quantiles
from costmodels.kernel_models.heldout import leave_groups_out
from costmodels.kernel_models.learned import residual
from costmodels.kernel_models.operations import OPERATIONS, datasheet_bound, dimensions, family_of
from costmodels.kernel_models.protocol import KernelModel, SecondsAlone
from costmodels.kernel_models.registry import UnknownKernelModel, find_kernel_model, kernel_models
from costmodels.kernel_models.samples import Sample, folds, samples
from costmodels.kernel_models.siblings import sibling_of
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.kernel_models.trees import UnreadableTrees, read_trees
from costmodels.measurements import ROOT, read
from costmodels.metrics import Evidence
from spaces.hardware import find_device

H100 = kernel_symbols(find_device("H100"))
FAMILIES = ("gemm", "attention", "pointwise")
SHAPES: dict[str, dict[str, NDArray[np.float64]]] = {
    "gemm": {"m": np.array([1.0, 64.0, 4096.0]), "n": np.full(3, 4096.0), "k": np.full(3, 8192.0)},
    "attention": {
        "batch": np.array([1.0, 2.0, 4.0]), "heads": np.full(3, 32.0), "kv_heads": np.full(3, 8.0),
        "q_len": np.full(3, 2048.0), "kv_len": np.full(3, 2048.0), "head_dim": np.full(3, 128.0),
    },
    "pointwise": {"rows": np.array([8.0, 1024.0, 16384.0]), "cols": np.full(3, 4096.0)},
    "collectives": {
        "bytes": np.array([2.0**12, 2.0**20, 2.0**28]), "ranks": np.full(3, 2.0), "ranks_per_node": np.full(3, 8.0),
    },
}  # fmt: skip


def shapes_of(op: str) -> dict[str, NDArray[np.float64]]:
    """Three sizes of an operator."""
    found = dict(SHAPES[family_of(op)])
    return found | {"q_len": np.ones(3)} if op == "attention_decode" else found


class KernelModelContract:
    """What any kernel model must hold; a subclass gives `model`."""

    @pytest.fixture
    def model(self) -> KernelModel:
        raise NotImplementedError

    @pytest.mark.parametrize("op", ["gemm", "attention_prefill", "rms_norm", "silu", "all_reduce"])
    def test_seconds_alone_are_those_of_the_whole_answer(self, model: KernelModel, op: str) -> None:
        """NaN where nothing but first principles speaks."""
        devices = (H100, kernel_symbols(find_device("H800")), kernel_symbols(find_device("MI300X")))
        for device in devices if isinstance(model, SecondsAlone) else ():
            whole = model.predict(op, shapes_of(op), device)
            assert model.seconds(op, shapes_of(op), device).tolist() == whole.value.tolist()
            known = whole.evidence != Evidence.FIRST_PRINCIPLES
            taught = model.taught_seconds(op, shapes_of(op), device)
            assert np.array_equal(taught, np.where(known, whole.value, np.nan), equal_nan=True)

    def test_it_is_a_kernel_model(self, model: KernelModel) -> None:
        assert isinstance(model, KernelModel)
        assert model.reads

    @pytest.mark.parametrize("device", ["H100", "H200", "A100-80GB", "B200", "H100-PCIe", "MI300X"])
    @pytest.mark.parametrize("op", sorted(OPERATIONS))
    def test_answers_are_finite_ordered_and_no_faster_than_the_datasheet(
        self, model: KernelModel, op: str, device: str
    ) -> None:
        symbols = kernel_symbols(find_device(device))
        time = model.predict(op, shapes_of(op), symbols)
        assert np.isfinite(time.high).all()
        assert (time.value > 0).all()
        assert (time.low <= time.value).all()
        assert (time.value <= time.high).all()
        assert (time.low >= datasheet_bound(op, shapes_of(op), symbols)).all()
        assert set(time.evidence.tolist()) <= {int(code) for code in Evidence}

    @pytest.mark.parametrize("op", ["gemm", "attention_prefill", "copy", "all_reduce"])
    def test_a_batch_of_none_and_a_batch_of_one(self, model: KernelModel, op: str) -> None:
        symbols, shapes = kernel_symbols(find_device("H100")), shapes_of(op)
        together = model.predict(op, shapes, symbols)
        assert len(model.predict(op, {name: values[:0] for name, values in shapes.items()}, symbols)) == 0
        alone = [model.predict(op, {name: values[i : i + 1] for name, values in shapes.items()}, symbols) for i in range(3)]
        np.testing.assert_allclose(np.concatenate([one.value for one in alone]), together.value, rtol=1e-12)

    @pytest.mark.parametrize("op", ["gemm", "attention_prefill", "attention_decode", "rms_norm", "copy", "all_reduce"])
    def test_four_times_the_work_takes_longer(self, model: KernelModel, op: str) -> None:
        """Four times, because libraries change kernels in between, and a measured curve has steps."""
        symbols, shapes = kernel_symbols(find_device("H100")), shapes_of(op)
        for name in dimensions(op):
            if name in ("heads", "kv_heads", "head_dim", "ranks", "ranks_per_node") or (
                op == "attention_decode" and name == "q_len"
            ):
                continue
            more = model.predict(op, shapes | {name: 4.0 * shapes[name]}, symbols)
            assert (more.value >= 0.93 * model.predict(op, shapes, symbols).value).all(), name

    def test_an_unknown_operator_or_a_missing_dimension_raises(self, model: KernelModel) -> None:
        symbols = kernel_symbols(find_device("H100"))
        with pytest.raises(ValueError, match="no kernel model"):
            model.predict("telepathy", {}, symbols)
        with pytest.raises(ValueError, match="k is missing"):
            model.predict("gemm", {"m": np.ones(1), "n": np.ones(1)}, symbols)

    def test_calls_from_python_take_no_less_than_graphs(self, model: KernelModel) -> None:
        symbols, shapes = kernel_symbols(find_device("H100")), shapes_of("gemm")
        eager = model.predict("gemm", shapes | {"launch": np.full(3, "eager")}, symbols)  # type: ignore[dict-item]
        graph = model.predict("gemm", shapes, symbols)
        assert (eager.value >= graph.value).all()
        assert eager.value[0] > graph.value[0] or graph.value[0] > 2e-5


class TestRegisteredModels(KernelModelContract):
    @pytest.fixture(params=sorted(kernel_models()))
    def model(self, request: pytest.FixtureRequest) -> KernelModel:
        return find_kernel_model(request.param)


def test_an_unknown_model_lists_the_nearest() -> None:
    with pytest.raises(UnknownKernelModel, match="did you mean learned"):
        find_kernel_model("lerned")


class TestForms:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_time_grows_with_every_dimension(self, family: str) -> None:
        """Strictly physics: for the fitted parameters of every measured device, more work never takes less time."""
        fit = read_fit(family)
        assert fit is not None
        rng = np.random.default_rng(0)
        for calibration in fit.devices.values():
            symbols = calibration.symbols
            for op in {
                "gemm": ["gemm"],
                "attention": ["attention_prefill", "attention_backward"],
                "pointwise": ["rms_norm", "copy"],
            }[family]:
                sizes = {name: np.round(2.0 ** rng.uniform(4, 12, 200)) for name in dimensions(op)}
                at = prepared(op, sizes, symbols)
                before = prior_time(op, at, symbols, calibration.variants)
                for name in dimensions(op):
                    if name == "head_dim":
                        continue  # heads wider than 64 run at another rate
                    if name == "kv_heads" and op == "attention_backward":
                        continue  # as many as there are heads: no gradients of shared ones to sum
                    more = prepared(op, sizes | {name: np.ceil(sizes[name] * rng.uniform(1, 3, 200))}, symbols)
                    assert (prior_time(op, more, symbols, calibration.variants) >= before * (1 - 1e-9)).all(), (op, name)

    def test_softmax_takes_the_kernel_of_its_row_width(self) -> None:
        sizes = {"rows": np.full(4, 64.0), "cols": np.array([2048.0, 2049.0, 8192.0, 8193.0])}
        found = variant("softmax", prepared("softmax", sizes, H100), H100).tolist()
        assert found == [f"softmax.forward.{name}" for name in ("warp", "registers", "registers", "shared")]

    def test_a_cache_of_several_sequences_and_heads_is_copied_before_its_products(self) -> None:
        sizes = {name: np.full(3, value) for name, value in (("heads", 8.0), ("kv_len", 1024.0), ("head_dim", 128.0))}
        sizes |= {"batch": np.array([1.0, 4.0, 4.0]), "kv_heads": np.array([4.0, 1.0, 4.0]), "q_len": np.ones(3)}
        at = prepared("attention_decode", sizes | {"implementation": np.full(3, "grouped")}, H100)
        kinds = variant("attention_decode", at, H100).tolist()
        assert [kind.endswith(".copied") for kind in kinds] == [False, False, True]

    def test_flash_cuts_the_keys_of_few_queries(self) -> None:
        """Units that would idle take a share of the keys: a quarter of the heads does not take as long as all of them."""
        fit = read_fit("attention")
        assert fit is not None
        sizes = {name: np.full(2, v) for name, v in (("batch", 1.0), ("q_len", 512.0), ("kv_len", 8192.0), ("head_dim", 128.0))}
        sizes |= {"heads": np.array([8.0, 32.0]), "kv_heads": np.full(2, 8.0), "causal": np.full(2, "false")}
        at = prepared("attention_prefill", sizes | {"implementation": np.full(2, "flash")}, H100)
        for calibration in fit.devices.values():
            few, many = prior_time("attention_prefill", at, calibration.symbols, calibration.variants)
            assert few < 0.5 * many

    def test_keys_are_cut_as_the_library_does(self) -> None:
        """FlashAttention-2's num_splits_heuristic, written as its C++ is."""

        def of_library(blocks: int, tiles: int, places: int) -> int:
            if blocks >= 0.8 * places:
                return 1
            up = lambda a, b: -(-a // b)  # noqa: E731
            allowed = [n for n in range(1, min(128, places, tiles) + 1) if n == 1 or up(tiles, n) != up(tiles, n - 1)]
            filling = {n: blocks * n / places / up(blocks * n, places) for n in allowed}
            return next(n for n in allowed if filling[n] >= 0.85 * max(filling.values()))

        rng = np.random.default_rng(0)
        blocks, length = rng.integers(1, 300, 200), rng.integers(1, 40_000, 200)
        width = np.array([64, 96, 128, 192])[rng.integers(0, 4, 200)]
        keys = np.where(width <= 64, 256, np.where(width <= 128, 128, 64))
        found = flash_parts(blocks.astype(float), length.astype(float), width.astype(float), 132.0)
        expected = [of_library(int(b), -(-int(n) // int(k)), 264) for b, n, k in zip(blocks, length, keys, strict=True)]
        np.testing.assert_array_equal(found, expected)

    def test_a_padded_head_takes_the_time_of_the_width_it_is_padded_to(self) -> None:
        fit = read_fit("attention")
        assert fit is not None
        sizes = {name: np.full(3, v) for name, v in (("batch", 4.0), ("heads", 16.0), ("kv_heads", 16.0))}
        sizes |= {"q_len": np.full(3, 4096.0), "kv_len": np.full(3, 4096.0), "head_dim": np.array([128.0, 144.0, 192.0])}
        for kernel in ("flash", "cudnn"):
            at = prepared("attention_prefill", sizes | {"implementation": np.full(3, kernel)}, H100)
            for calibration in fit.devices.values():
                whole, barely, padded_to = prior_time("attention_prefill", at, calibration.symbols, calibration.variants)
                assert barely > 1.2 * whole
                assert barely == pytest.approx(padded_to, rel=0.05)

    def test_gradients_of_shared_keys_are_summed(self) -> None:
        fit = read_fit("attention")
        assert fit is not None
        sizes = {name: np.full(2, v) for name, v in (("batch", 4.0), ("heads", 32.0), ("head_dim", 128.0))}
        sizes |= {"q_len": np.full(2, 2048.0), "kv_len": np.full(2, 2048.0), "kv_heads": np.array([32.0, 8.0])}
        at = prepared("attention_backward", sizes, H100)
        for calibration in fit.devices.values():
            own, shared = prior_time("attention_backward", at, calibration.symbols, calibration.variants)
            assert own < shared

    def test_many_narrow_rows_of_a_norm_are_slower_than_few_wide_ones(self) -> None:
        fit = read_fit("pointwise")
        assert fit is not None
        at = prepared("layer_norm", {"rows": np.array([65536.0, 1024.0]), "cols": np.array([256.0, 16384.0])}, H100)
        for calibration in fit.devices.values():
            narrow, wide = prior_time("layer_norm", at, calibration.symbols, calibration.variants)
            assert narrow > 2.0 * wide

    def test_parameters_stay_within_their_bounds(self) -> None:
        for family in FAMILIES:
            fit = read_fit(family)
            assert fit is not None
            for calibration in fit.devices.values():
                for values in calibration.variants.values():
                    for parameter in FORMS[family].parameters:
                        assert parameter.low - 1e-6 <= values[parameter.name] <= parameter.high + 1e-6


class TestTrees:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_numpy_equals_lightgbm(self, family: str) -> None:
        lightgbm = pytest.importorskip("lightgbm")
        text = (FOLDER / f"{family}.txt").read_text(encoding="utf-8")
        sample = samples(read(ROOT), family)[0]
        fit = read_fit(family)
        assert fit is not None
        prior = prior_time(sample.op, sample.at, sample.symbols, fit.devices[sample.device].variants)
        x = features.matrix(sample.op, sample.at, sample.symbols, prior)
        x = np.concatenate([x, np.random.default_rng(0).normal(0, 20, (500, x.shape[1]))])
        expected = lightgbm.Booster(model_str=text).predict(x, num_threads=1)
        np.testing.assert_allclose(read_trees(text).predict(x), expected, rtol=0, atol=1e-9)

    def test_a_tree_of_one_leaf_and_another_version(self) -> None:
        text = "tree\nversion=v4\nfeature_names=a b\n\nTree=0\nnum_leaves=1\nnum_cat=0\nleaf_value=0.5\n\nend of trees\n"
        np.testing.assert_array_equal(read_trees(text).predict(np.zeros((2, 2))), [0.5, 0.5])
        with pytest.raises(UnreadableTrees, match="version"):
            read_trees(text.replace("v4", "v2"))
        with pytest.raises(ValueError, match="2 features"):
            read_trees(text).predict(np.zeros((2, 3)))


class TestFits:
    def test_the_shipped_fits_are_of_this_data_and_code(self) -> None:
        """Fails after a change of either: run `python -m costmodels.kernel_models.fit`."""
        for family in (*FAMILIES, "collectives"):
            fit = read_fit(family)
            assert fit is not None
            assert is_current(fit), family

    @pytest.mark.parametrize("stale", ["data", "code"])
    def test_a_model_fitted_on_other_data_is_never_used(self, tmp_path: Path, stale: str) -> None:
        for name in ("gemm.json", "gemm.txt"):
            shutil.copy(FOLDER / name, tmp_path / name)
        facts = json.loads((tmp_path / "gemm.json").read_text(encoding="utf-8"))
        (tmp_path / "gemm.json").write_text(json.dumps(facts | {stale: "0" * 64}), encoding="utf-8")
        fit = read_fit("gemm", tmp_path)
        assert fit is not None
        assert fit.trees is None
        symbols = kernel_symbols(find_device("H100"))
        time = answer("gemm", shapes_of("gemm"), symbols, fit, "calibrated", None)
        np.testing.assert_allclose(time.value, Calibrated().predict("gemm", shapes_of("gemm"), symbols).value)
        assert (time.evidence == Evidence.EXTRAPOLATED).all()

    def test_changed_measurements_change_what_is_used(self, tmp_path: Path) -> None:
        shutil.copytree(ROOT, tmp_path / "data")
        assert (fit := read_fit("gemm", FOLDER, tmp_path / "data")) is not None
        assert fit.trees is not None
        with next((tmp_path / "data").glob("*/gemm.csv")).open("a", encoding="utf-8") as file:
            file.write("\n")
        read_fit.cache_clear()
        from costmodels.measurements import data_digest

        data_digest.cache_clear()
        assert (fit := read_fit("gemm", FOLDER, tmp_path / "data")) is not None
        assert fit.trees is None

    def test_outside_what_was_taught_the_edge_is_held_and_the_interval_wider(self) -> None:
        symbols, model = kernel_symbols(find_device("H100")), find_kernel_model("learned")
        near = {"m": np.array([8000.0]), "n": np.array([8192.0]), "k": np.array([8192.0])}
        far = {"m": np.array([8192.0]), "n": np.array([2.0**21]), "k": np.array([8192.0])}
        inner, outer = model.predict("gemm", near, symbols), model.predict("gemm", far, symbols)
        assert inner.evidence[0] == Evidence.INTERPOLATED
        assert outer.evidence[0] == Evidence.EXTRAPOLATED
        assert outer.high[0] / outer.value[0] > inner.high[0] / inner.value[0]
        assert 0.8 < (outer.value[0] / inner.value[0]) / 256 < 1.25

    def test_a_sibling_stands_for_a_device_that_was_not_measured(self) -> None:
        fit = read_fit("gemm")
        assert fit is not None
        devices = {name: found for name, found in fit.devices.items() if name != "H200-141GB-SXM"}
        found = sibling_of(kernel_symbols(find_device("H200")), devices)
        assert found is not None
        assert found.name == "H100-80GB-SXM"
        assert not found.same
        without = Fit(**{slot: getattr(fit, slot) for slot in Fit.__slots__} | {"devices": devices})
        symbols = kernel_symbols(find_device("H200"))
        time = answer("gemm", shapes_of("gemm"), symbols, without, "learned", residual)
        measured = find_kernel_model("learned").predict("gemm", shapes_of("gemm"), symbols)
        assert (time.evidence == Evidence.EXTRAPOLATED).all()
        np.testing.assert_allclose(time.value, measured.value, rtol=0.15)

    def test_another_generation_has_no_sibling(self) -> None:
        fit = read_fit("gemm")
        assert fit is not None
        for name in ("A100-80GB", "B200", "MI300X", "V100", "H20-96GB"):
            assert sibling_of(kernel_symbols(find_device(name)), fit.devices) is None


class TestDomain:
    def test_inside_is_the_box_and_near_a_taught_shape(self) -> None:
        at = {name: 2.0 ** np.arange(4.0, 12.0) for name in ("m", "n", "k")}
        domain = domain_of("gemm", at, np.arange(8).astype(str))
        asked = {"m": np.array([64.0, 16.0, 8192.0]), "n": np.array([64.0, 2048.0, 64.0]), "k": np.array([64.0, 16.0, 64.0])}
        assert inside(domain, "gemm", asked).tolist() == [True, False, False]
        assert clipped(domain, "gemm", asked)["m"].tolist() == [64.0, 16.0, 2048.0]


def _few(family: str) -> list[Sample]:
    """A twelfth of the groups, to be quick."""
    many = samples(read(ROOT), family)
    fold = folds(many, 12)
    return [sample.take(own == 0) for sample, own in zip(many, fold, strict=True)]


class TestHeldOut:
    @pytest.mark.slow
    def test_error_is_reported_on_held_out_rows(self) -> None:
        """Times of one group made tenfold: a fit that had seen them would follow, one that had not is tenfold wrong."""
        pytest.importorskip("lightgbm")
        many = _few("gemm")
        strange = many[0].group[0]
        spoiled = [
            Sample(
                **{slot: getattr(s, slot) for slot in Sample.__slots__}
                | {"time": np.where(s.group == strange, 10.0, 1.0) * s.time}
            )
            for s in many
        ]
        for rows in leave_groups_out(spoiled, 4):
            own = rows.sample.group == strange
            assert (np.abs(rows.error("learned")[own]) > 1.5).all()
            assert np.median(np.abs(rows.error("learned")[~own])) < 0.15

    def test_a_group_is_in_one_fold_on_all_devices(self) -> None:
        many = samples(read(ROOT), "gemm")
        seen: dict[str, int] = {}
        for sample, own in zip(many, folds(many, 8), strict=True):
            for group, turn in zip(sample.group.tolist(), own.tolist(), strict=True):
                assert seen.setdefault(group, turn) == turn

    def test_conformal_quantiles_cover(self) -> None:
        rng = np.random.default_rng(1)
        error = np.abs(rng.normal(size=400))
        found = quantiles(error, np.full(400, "a"))
        assert 0.87 < (np.abs(rng.normal(size=4000)) <= found["a"]).mean() < 0.94
        assert quantiles(error[:5], np.full(5, "b")).keys() == {""}
