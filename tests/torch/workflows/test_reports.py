"""Reports of real runs: they show what the runs left, and in a browser one can look into it."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_exec.errors import UserError
from ptycho_torch.cli import main
from ptycho_torch.evaluation.report.images import unpacked
from ptycho_torch.reconstruction.causes import Cause
from ptycho_torch.reconstruction.verdict import Verdict
from ptycho_torch.simulate import save, simulate_scan
from ptycho_torch.workflows.artifacts import read_arrays, read_reconstruction
from ptycho_torch.workflows.reports import labels_of, patterns_per_pixel, write_comparison, write_run_report
from tests.browser import chromium, serious_faults

MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training, its result, the same refined, and a page that compares them."""
    folder = tmp_path_factory.mktemp("runs")
    scan = str(save(simulate_scan(n=32, patterns=100, photons=1e6, seed=0), folder / "scan.npz"))
    trained, out, refined = (str(folder / name) for name in ("train", "infer", "refine"))
    tiny = ["--n-filters=4", "--depth=1", "--epochs=2", "--num-threads=1", "--val-fraction=0.2"]
    moves = ["--refine=3", "--refine-positions=true", "--probe-modes=2"]
    for words in (
        ["train", scan, "--out", trained, *tiny],
        ["infer", trained, scan, "--out", out],
        ["infer", trained, scan, "--out", refined, *moves],
        ["compare", trained, out, refined, "--out", str(folder / "compare.html")],
    ):
        assert main(words) == 0
    return folder


def page_of(runs: Path, name: str) -> Path:
    return runs / "compare.html" if name == "compare" else runs / name / "report.html"


def headings(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def viewers(page: str) -> list[dict[str, Any]]:
    return [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', page)]


RECORD = ["Science", "Settings", "Times", "About this run"]


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("train", ["Curves", "Scan", "Probe", *RECORD]),
        ("infer", ["Object", "Curves", "Scan", "Patterns explained worst", *RECORD]),
        ("refine", ["Object", "Curves", "Scan", "Patterns explained worst", "Probe", *RECORD]),
        ("compare", ["Figures", "Objects", "Curves", "Differences"]),
    ],
)
def test_a_report_has_the_sections_that_the_run_has(runs: Path, name: str, sections: list[str]) -> None:
    assert headings(page_of(runs, name).read_text()) == sections


def test_objects_on_the_page_are_those_in_the_files(runs: Path) -> None:
    arrays = read_reconstruction(runs / "refine")
    data = viewers(page_of(runs, "refine").read_text())[0]
    things = {thing["name"]: thing["images"] for thing in data["things"]}
    assert list(things) == ["truth", "network", "refined"]
    amplitude = unpacked(things["refined"][0])
    (top, left), (height, width) = data["origin"], amplitude.shape
    stored = np.abs(arrays["object"])[top : top + height, left : left + width]
    covered = np.isfinite(amplitude)
    np.testing.assert_array_equal(covered, arrays["coverage"][top : top + height, left : left + width] > 0)
    inner = covered & (amplitude < np.nanquantile(amplitude, 0.99))
    ratio = amplitude[inner] / stored[inner]
    assert ratio.std() < 1e-2 * ratio.mean(), "the scale is that of the truth, all else as stored"
    whole = read_arrays(runs / "refine" / "comparison.npz")["truth"]
    truth = whole[top : top + height, left : left + width]
    step = things["truth"][0]["step"]
    np.testing.assert_allclose(unpacked(things["truth"][0])[covered], np.abs(truth)[covered], atol=step)


def test_a_training_shows_every_epoch_of_losses_and_learning_rates(runs: Path) -> None:
    page = page_of(runs, "train").read_text()
    history = json.loads((runs / "train" / "manifest.json").read_text())["history"]
    assert len(history["train_loss"]) == 2
    for name in ("train_loss", "val_loss"):
        for epoch, value in enumerate(history[name], start=1):
            assert f"{name}, epoch {epoch}: {value:.4g}" in page
    assert "learning rate over epoch" in page


def test_a_refinement_shows_its_losses_its_corrections_and_the_powers_of_the_modes(runs: Path) -> None:
    page = page_of(runs, "refine").read_text()
    assert "refinement, epoch 3: " in page
    assert "lines to where the correction moved each" in page
    power = read_reconstruction(runs / "refine")["mode_powers"].max()
    assert f"mode 1 ({power:.1%})" in page


def test_the_worst_patterns_are_shown_with_their_misfit(runs: Path) -> None:
    data = read_arrays(runs / "infer" / "report.npz")
    assert len(data["worst"]) == 6
    assert data["misfit"][data["rows"] == data["worst"][0]] == data["misfit"].max()
    assert (
        f"pattern {data['worst'][0]}, misfit (1 is noise) {data['misfit'].max():.3g}"
        in page_of(runs, "infer").read_text()
    )


def test_the_map_of_the_scan_shows_the_error_that_counting_leaves(runs: Path) -> None:
    places = viewers(page_of(runs, "refine").read_text())[1]
    assert [quantity["name"] for quantity in places["quantities"]] == ["coverage", "error of counting"]
    coverage, error = map(unpacked, places["things"][0]["images"])
    at_peak = float(read_arrays(runs / "refine" / "report.npz")["photons_at_peak"])
    known = coverage > 0.2 * coverage.max()  # images are stored in steps
    np.testing.assert_allclose(error[known], (coverage[known] * at_peak) ** -0.5, rtol=0.05)
    assert at_peak > 1


@pytest.mark.parametrize("words", [["--patch-weighting=uniform"], ["--window=hann"], ["--middle-trim=16"]])
def test_there_is_no_error_of_counting_where_the_coverage_is_not_the_light(
    runs: Path, tmp_path: Path, words: list[str]
) -> None:
    out = tmp_path / "other"
    assert main(["infer", str(runs / "train"), str(runs / "scan.npz"), *words, "--out", str(out)]) == 0
    assert "photons_at_peak" not in read_arrays(out / "report.npz")
    assert "photons_at_peak" in read_arrays(runs / "infer" / "report.npz")


def test_settings_and_science_have_origins_and_those_at_their_default_are_hidden(runs: Path) -> None:
    page = page_of(runs, "refine").read_text()
    row = re.search(r"<tr><td class=\"name\">refine_positions</td>.*?</tr>", page)
    assert row is not None
    assert "--refine-positions" in row.group()
    assert re.search(r'<tr class="hidden"><td class="name">refine_background</td>', page)
    assert "auto: no usable GPU" in page or "as requested" in page


def test_the_verdict_its_causes_and_scores_come_first(runs: Path) -> None:
    page = page_of(runs, "infer").read_text()
    verdict = json.loads((runs / "infer" / "manifest.json").read_text())["verdict"]
    head = page[: page.index("<h2")]
    assert f'class="verdict {verdict["status"]}"' in head
    for cause in verdict["causes"]:
        assert f"likely cause - {cause['name']}" in head
    assert "amplitude SSIM" in head


def test_causes_and_decisions_are_said_with_their_evidence(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "caused"
    shutil.copytree(runs / "infer", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    causes = (
        Cause("center", "off by <9> pixels", ({"center": "auto"}, {"zero_frequency": "corner"}), 0.5),
        Cause("probe", "it changed", (), 0.1),
    )
    manifest["verdict"] = {**manifest["verdict"], **Verdict("poor", "misfit", "", causes=causes).to_json()}
    decision = {"field": "orient", "value": "none", "evidence": "the others explain <less>"}
    manifest["data"]["test"]["report"]["decisions"] = [decision]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = html.unescape(write_run_report(folder).read_text())
    for cause in causes:
        assert f"<li>likely cause - {cause.line()}</li>" in page
    assert "Decided from the data" in headings(page)
    assert f'<td class="evidence">{decision["evidence"]}</td>' in page


def test_a_report_of_an_earlier_run_shows_what_that_left(runs: Path, tmp_path: Path) -> None:
    """A directory without the file for the report, losses in the manifest, and a truth."""
    old = tmp_path / "old"
    shutil.copytree(runs / "refine", old)
    for name in ("report.npz", "comparison.npz"):
        (old / name).unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    for name in ("losses", "held_out_losses"):
        del manifest["refinement"][name]
    del manifest["metrics"], manifest["verdict"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert headings(write_run_report(old).read_text()) == ["Object", "Probe", *RECORD]


def test_compared_runs_show_figures_and_only_what_differs(runs: Path) -> None:
    page = page_of(runs, "compare").read_text()
    (differences,) = re.findall(r"<h2 id=\"differences\">.*", page, re.DOTALL)
    names = re.findall(r'<td class="name">(.*?)</td>', differences)
    assert {"refine", "probe_modes", "refine_positions"} <= set(names)
    assert not {"n_filters", "seed", "domain"} & set(names)
    assert "3 (--refine)" in differences
    assert "0 (default)" in differences
    (data,) = viewers(page)
    assert [thing["name"] for thing in data["things"]] == ["truth", "infer", "refine"]
    assert data["panes"] == [[0, None], [1, None], [None, 0], [None, 1], [None, 2]]


def test_what_cannot_be_compared_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("")
    with pytest.raises(UserError, match="exists already"):
        write_comparison([runs / "infer"], tmp_path / "there.html")
    with pytest.raises(UserError):
        write_comparison([tmp_path], tmp_path / "new.html")
    begun = tmp_path / "begun"
    begun.mkdir()
    manifest = json.loads((runs / "infer" / "manifest.json").read_text())
    (begun / "manifest.json").write_text(json.dumps({**manifest, "status": "failed"}))
    with pytest.raises(UserError, match="nothing to compare"):
        write_comparison([runs / "infer", begun], tmp_path / "new.html")
    assert labels_of([Path("a/out"), Path("b/out")]) == ["a/out", "b/out"]
    assert labels_of([Path("a/one"), Path("b/two")]) == ["one", "two"]


def test_objects_on_different_canvases_are_compared_apart(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs / "infer", other)
    (other / "comparison.npz").unlink()
    arrays = read_reconstruction(other)
    cut = {name: arrays[name][:-3] for name in ("object", "coverage")}
    np.savez(other / "reconstruction.npz", **cut)
    page = write_comparison([runs / "refine", other], tmp_path / "apart.html").read_text()
    assert [[thing["name"] for thing in data["things"]] for data in viewers(page)] == [
        ["truth", "refine"],
        ["other"],
    ]


def test_patterns_on_a_pixel_are_counted() -> None:
    rng = np.random.default_rng(0)
    positions, n, canvas = rng.uniform(4, 15, size=(12, 2)), 8, (20, 22)
    counted = np.zeros(canvas)
    for y, x in np.rint(positions - (n - 1) / 2).astype(int):
        counted[max(y, 0) : y + n, max(x, 0) : x + n] += 1
    np.testing.assert_array_equal(patterns_per_pixel(positions, n, canvas), counted)


def test_a_page_with_three_objects_of_512_pixels_is_small(runs: Path, tmp_path: Path) -> None:
    """Truth, network and refined object with noise in every pixel, which hardly compresses."""
    big = tmp_path / "big"
    shutil.copytree(runs / "refine", big)
    rng = np.random.default_rng(0)
    side = 512

    def noisy() -> np.ndarray:
        amplitude, phase = 1 + 0.2 * rng.normal(size=(side, side)), 0.5 * rng.normal(size=(side, side))
        return (amplitude * np.exp(1j * phase)).astype(np.complex64)

    arrays = read_reconstruction(big)
    arrays |= {"object": noisy(), "network_object": noisy(), "coverage": np.ones((side, side), np.float32)}
    np.savez(big / "reconstruction.npz", **arrays)
    comparison = read_arrays(big / "comparison.npz")
    np.savez(big / "comparison.npz", **{**comparison, "truth": noisy()})
    assert write_run_report(big).stat().st_size < MOST_BYTES


# --- in a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, once for all tests here."""
    with chromium() as started:
        yield started


@pytest.fixture
def look(browser: Any, runs: Path) -> Iterator[Any]:
    """Opens a page of a run, in a width and a color scheme; at the end nothing may have gone wrong."""
    opened, wrong = [], []

    def open_page(name: str, *, width: int = 1200, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(context)
        page, path = context.new_page(), page_of(runs, name)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url == path.as_uri() or wrong.append(request.url))
        page.goto(path.as_uri())
        for viewer in page.locator(".viewer").all():
            viewer.and_(page.locator("[data-ready]")).wait_for()
        return page

    yield open_page
    for context in opened:
        context.close()
    assert wrong == []


def pixels(canvas: Any) -> str:
    """What a canvas shows, once it is drawn."""
    canvas.page.evaluate("() => new Promise(requestAnimationFrame)")
    shown: str = canvas.evaluate("canvas => canvas.toDataURL()")
    return shown


def state(viewer: Any, name: str) -> float:
    viewer.page.evaluate("() => new Promise(requestAnimationFrame)")
    return float(viewer.get_attribute(f"data-{name}"))


@pytest.mark.slow
def test_pages_fit_a_telephone_and_have_no_serious_fault(look: Any) -> None:
    """The page of the refined run has all that the others have."""
    for name, scheme in (
        ("train", ""),
        ("infer", ""),
        ("refine", "light"),
        ("refine", "dark"),
        ("compare", ""),
    ):
        page = look(name, width=400, scheme=scheme or "light")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert not scheme or serious_faults(page) == []


@pytest.mark.slow
def test_zoom_divider_and_theme_act_by_pointer_and_by_keyboard(look: Any) -> None:
    page = look("refine")
    viewer = page.locator(".viewer").first
    canvas = viewer.locator("canvas").first

    whole = pixels(canvas)
    viewer.get_by_label("zoom in").click()
    assert state(viewer, "zoom") == 2
    assert pixels(canvas) != whole
    canvas.focus()
    page.keyboard.press("+")
    assert state(viewer, "zoom") == 4
    before = viewer.get_attribute("data-center")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 120)
    page.mouse.up()
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert viewer.get_attribute("data-center") != before, "dragging moves the image"
    page.keyboard.press("0")
    assert state(viewer, "zoom") == 1
    page.mouse.wheel(0, -200)
    assert state(viewer, "zoom") > 1, "the wheel zooms an image that has the focus"
    page.keyboard.press("0")

    page.mouse.move(2, 2)
    divided = pixels(canvas)
    slider = viewer.get_by_label("divider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert state(viewer, "divider") == pytest.approx(0.51)
    assert pixels(canvas) != divided
    page.keyboard.press("End")
    assert state(viewer, "divider") == 1
    everything = pixels(canvas)
    viewer.get_by_label("left").select_option(label="network")
    assert pixels(canvas) != everything
    slider.focus()
    page.keyboard.press("Tab")
    shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert shown == "solid", "what has the focus is outlined"

    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="dark page").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.get_by_role("button", name="light page").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light

    positions = pixels(canvas)
    viewer.get_by_label("positions").check()
    assert pixels(canvas) != positions


@pytest.mark.slow
def test_the_value_under_pointer_and_cursor_is_that_of_the_file(look: Any, runs: Path) -> None:
    page = look("infer")
    viewer = page.locator(".viewer").first
    canvas, readout = viewer.locator("canvas").first, viewer.locator(".readout")
    data = viewers(page_of(runs, "infer").read_text())[0]
    images = {thing["name"]: unpacked(thing["images"][0]) for thing in data["things"]}
    height, width = images["network"].shape
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    row, column = height // 2, width // 3

    def check(row: int, column: int) -> None:
        text = readout.inner_text()
        top, left = data["origin"]
        assert text.startswith(f"y {top + row}, x {left + column}")
        for name, image in images.items():
            found = re.search(rf"amplitude .*?{name} ([-0-9.e]+)", text)
            assert found, text
            assert float(found[1]) == pytest.approx(
                image[row, column], abs=data["things"][0]["images"][0]["step"]
            )

    scale = box["width"] / width
    page.mouse.move(box["x"] + (column + 0.5) * scale, box["y"] + (row + 0.5) * scale)
    check(row, column)
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowRight")
    check(row + 1, column + 10)


@pytest.mark.slow
def test_patterns_are_chosen_and_compared_images_move_together(look: Any) -> None:
    page = look("infer")
    viewer = page.get_by_role("group", name="pattern", exact=True)
    first = pixels(viewer.locator("canvas").first)
    viewer.get_by_role("combobox").select_option(index=1)
    assert pixels(viewer.locator("canvas").first) != first
    page = look("compare")
    viewer = page.locator(".viewer").first
    before = [pixels(canvas) for canvas in viewer.locator("canvas").all()]
    assert len(before) == 5
    viewer.get_by_label("zoom in").click()
    zoomed = [pixels(canvas) for canvas in viewer.locator("canvas").all()]
    assert all(one != other for one, other in zip(before, zoomed, strict=True))
    viewer.get_by_label("side by side").select_option(label="phase")
    phases = [pixels(canvas) for canvas in viewer.locator("canvas").all()]
    assert [one != other for one, other in zip(zoomed, phases, strict=True)] == [
        False,
        False,
        True,
        True,
        True,
    ]
