"""Where records go, what ends a watch, and the heat map."""

from __future__ import annotations

import copy
import csv
import json
import pickle
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import parametrizations
from watched import everything, small, std_record, train

import normkit
from normkit.errors import ArgumentError, DtypeError, StateError
from normkit.tools.watch import NormRecord, heat_map
from normkit.tools.watch.record import FIELDS
from zoo import IMAGES, SOUND, TEXT, image_model, language_model


@pytest.mark.slow
def test_a_killed_run_loses_nothing(tmp_path: Path):
    program = """if True:
        import os, sys, torch, normkit
        model = torch.nn.Sequential(torch.nn.LayerNorm(4))
        watched = normkit.watch(model, every=1, to=[sys.argv[1] + "/a.csv", sys.argv[1] + "/a.jsonl"])
        for _ in range(6):
            model(torch.randn(2, 4)).sum().backward()
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    # All but the step that it was killed in.
    assert steps_in(tmp_path / "a.csv") == steps_in(tmp_path / "a.jsonl") == [*range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*IMAGES, *TEXT, *SOUND])
def test_every_norm_of_other_peoples_models(name: str):
    model, x = image_model(name) if name in IMAGES else language_model(name)
    model.train()
    called: set[str] = set()
    found = [(place.name, place.module, facts) for place, facts in normkit.tools.model.tree.norms(model)]
    for norm_name, module, _ in found:
        module.register_forward_hook(lambda *_, norm_name=norm_name: called.add(norm_name))
    if not found:
        with pytest.raises(StateError, match="has none"):
            normkit.watch(model)
        return
    with normkit.watch(model, every=1) as watched:
        model(x).square().mean().backward()
    assert called
    assert {r.norm for r in watched.records} == called
    for record in watched.records:
        assert record.channels == next(module for n, module, _ in found if n == record.norm).weight.numel()
        assert record.input_std > 0
        assert record.output_std is not None
        assert record.nonfinite_input == 0


def test_under_distributed_data_parallel(tmp_path: Path):
    model = small()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with normkit.watch(wrapped, every=1) as watched:
            train(wrapped, 2)
        with normkit.watch(model, every=1) as inner:
            train(wrapped, 2)
    finally:
        distributed.destroy_process_group()
    assert [(r.step, r.norm) for r in watched.records] == [(0, "1"), (1, "1")]
    assert [(r.step, r.norm) for r in inner.records] == [(0, "1"), (1, "1")]
    assert all(r.grad_weight > 0 for r in watched.records)


# Sinks ----------------------------------------------------------------------------------------------------


def test_files_are_whole_after_every_step_and_go_on(tmp_path: Path):
    model = small()
    table, lines = tmp_path / "a.csv", str(tmp_path / "a.jsonl")
    with normkit.watch(model, every=2, to=(table, lines)) as watched:
        train(model, 4)
        # Step 2 has its gradients, but no forward came behind it yet.
        model.eval()(torch.randn(2, 4))
        assert len(table.read_text().splitlines()) == 3
        model.train()
    with normkit.watch(model, every=2, to=[table, lines], start=4) as second:
        train(model, 1)
    records = [*watched.records, *second.records]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert steps_in(table) == steps_in(Path(lines)) == [0, 2, 4]
    assert [float(row["input_std"]) for row in rows] == [r.input_std for r in records]
    read = [json.loads(line) for line in Path(lines).read_text().splitlines()]
    assert [NormRecord(**row) for row in read] == records
    assert read[0] == records[0].to_dict()


def steps_in(path: Path) -> list[int]:
    with path.open() as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
        return [int(row["step"]) for row in rows]


def test_a_torn_line_of_a_killed_run_is_dropped(tmp_path: Path):
    for name in ("a.csv", "a.jsonl"):
        path = tmp_path / name
        with normkit.watch(model := small(), every=1, to=path):
            train(model, 2)
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        with normkit.watch(model, every=1, to=path, start=1):
            train(model, 1)
        assert steps_in(path) == [0, 1]


def test_jsonl_holds_no_nan(tmp_path: Path):
    norm = nn.LayerNorm(2)
    with normkit.watch(norm, every=1, to=tmp_path / "a.jsonl"):
        norm(torch.full((2, 2), torch.nan)).sum().backward()
    row = json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["input_mean"] is None
    assert row["nonfinite_input"] == 4


def test_functions_and_tensorboard(tmp_path: Path):
    from torch.utils.tensorboard import SummaryWriter

    class Scalars:
        def __init__(self) -> None:
            self.seen: dict[tuple[str, int], float] = {}

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            self.seen[tag, global_step] = scalar_value

    got: list[NormRecord] = []
    model, scalars = small(), Scalars()
    with (
        SummaryWriter(str(tmp_path)) as writer,
        normkit.watch(model, every=1, to=[got.append, scalars, writer]) as watched,
    ):
        train(model, 2)
    assert tuple(got) == watched.records
    assert scalars.seen["output_std/1", 1] == got[1].output_std
    assert len(list(tmp_path.glob("events*"))) == 1


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"every": 0}, ArgumentError, "every must be at least 1, got 0"),
        ({"every": 2.5}, ArgumentError, "every must be a whole number"),
        ({"keep": 0}, ArgumentError, "keep must be at least 1, got 0"),
        ({"start": -1}, ArgumentError, "start must be at least 0, got -1"),
        ({"to": 3}, DtypeError, "got int: give 'norms.csv'"),
        ({"to": ["a.jsonl", 3]}, DtypeError, "or several of these, got int"),
        ({"to": "norms.txt"}, ArgumentError, "writes .csv or .jsonl, got 'norms.txt'"),
        ({"to": "nowhere/norms.csv"}, ArgumentError, "make nowhere first"),
    ],
)
def test_misuse_changes_nothing(options, error, text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model = small()
    before = everything(model)["modules"]
    with pytest.raises(error, match=text):
        normkit.watch(model, **options)
    assert everything(model)["modules"] == before
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_left_alone(tmp_path: Path):
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_text("epoch,loss\n1,2\n")
        with pytest.raises(StateError, match=r"adds to a file of its own, got .*'epoch,loss"):
            normkit.watch(small(), to=tmp_path / name)
        assert (tmp_path / name).read_text() == "epoch,loss\n1,2\n"


def test_models_without_norms_are_refused():
    with pytest.raises(StateError, match=r"Sequential has none: insert some.*weight_norm"):
        normkit.watch(nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2))))
    with pytest.raises(DtypeError, match=r"must be a torch\.nn\.Module, got int"):
        normkit.watch(3)


# Ends -----------------------------------------------------------------------------------------------------


def test_an_exception_in_the_training_loop(tmp_path: Path):
    model = small()
    before = everything(model)["modules"]
    watched = normkit.watch(model, every=1, to=tmp_path / "a.csv")

    def loop() -> None:
        with watched:
            train(model, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert everything(model)["modules"] == before
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    assert watched._sinks[0].__closure__ is not None
    files = [cell.cell_contents for cell in watched._sinks[0].__closure__ if hasattr(cell.cell_contents, "closed")]
    assert [file.closed for file in files] == [True]
    watched.close()


class Breaks(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_inside_the_model(error: type[BaseException]):
    model = nn.Sequential(nn.LayerNorm(4), Breaks(error), nn.LayerNorm(4))
    before = everything(model)["modules"]
    with normkit.watch(model, every=1) as watched:
        with pytest.raises(error):
            model(torch.randn(2, 4))
        if error is ZeroDivisionError:  # torch runs no hook after an interrupt; then the next forward takes them off
            assert everything(model)["modules"]["0"] == before["0"]
        model[1].error = None
        train(model, 1)
        assert everything(model)["modules"]["0"] == before["0"]
    assert everything(model)["modules"] == before
    # What came before the failure is told.
    assert [(r.step, r.norm) for r in watched.records] == [(0, "0"), (1, "0"), (1, "2")]


def test_a_sink_that_raises_is_heard_and_all_hooks_go():
    def full(record: NormRecord) -> None:
        raise OSError("disk full")

    model = small()
    before = everything(model)["modules"]
    with pytest.raises(OSError, match="disk full"), normkit.watch(model, every=1, to=full):
        train(model, 3)
    assert everything(model)["modules"] == before


def test_copies_and_files_of_a_watched_model_are_not_watched(tmp_path: Path):
    model = small()
    with normkit.watch(model, every=1, to=tmp_path / "a.csv") as watched:
        train(model, 1)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            train(twin, 2)
        torch.save(model, tmp_path / "model.pt")
    assert watched.steps == 1


def test_a_with_block_without_a_step_warns():
    model = small()
    with pytest.warns(UserWarning, match="saw no training step"), normkit.watch(model):
        model.eval()(torch.randn(2, 4))


def test_memory_is_bounded_and_spans_the_whole_run():
    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    got: list[NormRecord] = []
    with normkit.watch(model, every=2, keep=20, to=got.append) as watched:
        train(model, 100)
    steps = sorted({r.step for r in watched.records})
    assert len(got) == 100
    assert len(watched.records) <= 20
    assert steps == [*range(0, 100, 16)]
    assert [r.norm for r in watched.records if r.step == 16] == ["0", "1"]


def test_the_table_of_the_last_step():
    model = small()
    with normkit.watch(model, every=1) as watched:
        assert "no record yet after 0 steps" in str(watched)
        train(model, 2)
    lines = str(watched).splitlines()
    assert lines[0].split()[:3] == ["norm", "input", "mean"]
    assert lines[1].startswith("1 ")
    assert lines[-1] == "1 norms, step 1 of 2"


def rects(picture: str) -> list[ET.Element]:
    return [
        r for g in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}g") for r in g if r.tag.endswith("rect")
    ]


def test_the_heat_map(tmp_path: Path):
    records = [
        std_record(0, "a<b", 1.0),
        std_record(0, "c", 2.0),
        std_record(50, "a<b", 3.0),
        std_record(50, "c", None),
    ]
    picture = heat_map.draw([*records, std_record(100, "c", float("nan"))], "output_std")
    cells = rects(picture)
    # No number, no cell; the ends of the scale at the ends of the colours; what is not finite in red.
    assert [cell.get("fill") for cell in cells] == ["#440154", "#fde725", "#21918c", "#d62728"]
    assert [cell[0].text for cell in cells] == ["0: 1", "50: 3", "0: 2", "100: nan"]
    text = "".join(ET.fromstring(picture).itertext())
    assert "output_std of 2 norms, steps 0 to 100; colours from 1 to 3" in text
    assert 'role="img" aria-label="output_std' in picture
    assert "<a<b" not in picture


def test_the_scale_of_the_heat_map():
    wide = [std_record(0, "a", 1e-3), std_record(1, "a", 1.0), std_record(2, "a", 1e3)]
    assert rects(heat_map.draw(wide, "output_std"))[1].get("fill") == "#21918c"
    assert "logarithmic" in heat_map.draw(wide, "output_std")
    assert rects(heat_map.draw(wide, "output_std", log=False))[1].get("fill") != "#21918c"
    assert rects(heat_map.draw(wide[:1], "output_std"))[0].get("fill") == "#21918c"


def test_a_large_heat_map_stays_small():
    records = [std_record(step, f"layer{i}", float(step % 7)) for step in range(500) for i in range(60)]
    picture = heat_map.draw(records, "output_std")
    assert len(rects(picture)) == 60 * heat_map.COLUMNS
    assert len(picture) < 500_000


@pytest.mark.parametrize(
    ("records", "options", "error", "text"),
    [
        ([], {"value": "output_sdt"}, ArgumentError, "did you mean 'output_std'"),
        ([], {"value": "output_std"}, StateError, "there is no record yet"),
        ([std_record(0, "a", None)], {"value": "output_std"}, StateError, "no record has a finite output_std"),
        (
            [std_record(0, "a", 0.0)],
            {"value": "output_std", "log": True},
            ArgumentError,
            "needs positive numbers, got 0",
        ),
    ],
)
def test_what_cannot_be_drawn(records, options, error, text):
    with pytest.raises(error, match=text):
        heat_map.draw(records, **options)


def test_the_picture_of_a_run_is_written(tmp_path: Path):
    model = small()
    with normkit.watch(model, every=1) as watched:
        train(model, 3)
    picture = watched.heat_map(tmp_path / "a.svg", value="grad_output")
    assert (tmp_path / "a.svg").read_text() == picture
    assert len(rects(picture)) == 3


def test_fields_are_told_once():
    assert len(set(FIELDS)) == len(FIELDS)
    assert all(name in NormRecord.__doc__ for name in FIELDS)
