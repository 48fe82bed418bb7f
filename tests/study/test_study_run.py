"""What is trained: data apart, networks and batches paired, runs that fail recorded, nothing run twice."""

import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import normkit
from normkit.errors import ArgumentError, StateError
from normkit.study import conduct, design, embedded, nets, replicas, run, train
from normkit.study.comparison import Comparison
from normkit.study.crew import muster
from normkit.study.run import Job, Run
from normkit.study.setup import made
from normkit.study.store import Store, fingerprint
from normkit.study.task import Part, Task
from normkit.study.whole import carry_out

METHODS = ("none", "batch_norm", "layer_norm", "instance_norm", "group_norm", "weight_norm")
DIGITS = embedded.digits()
SMALL = replace(DIGITS, probe=None)


def plan(*methods: str, steps: int = 40, seeds: int = 2) -> design.Design:
    return replace(design.design(methods, (4,), seeds, 3, steps, 0), gap_images=32, time_rounds=3)


def convnet(method: str, seed: int) -> nn.Sequential:
    return nets.convnet(method, seed, channels=embedded.CHANNELS)


def one(work: Task, plan: design.Design, job: Job) -> Run:
    """The run of a job without the time it took; what it raises is raised."""
    return train._train(work, plan, [job], stacked=False)[0]


def whole(
    work: Task, plan: design.Design, folder: Path, progress: conduct.Progress | None = None, workers: int = 1
) -> Comparison:
    bench = conduct.Bench("digits", work, plan, timed=True)
    with Store(folder / "study.sqlite3") as store:
        crew = muster(((work, plan),), workers)
        return carry_out([bench], (), store, crew, progress=progress or silent)


def silent(done: int, total: int, what: str) -> None:
    pass


def test_no_image_is_in_two_parts() -> None:
    images = [{tuple(image.flatten().tolist()) for image in part.data[0]} for part in (DIGITS.train, DIGITS.validation)]
    images.append({tuple(image.flatten().tolist()) for image in DIGITS.test.data[0]})
    # The noise makes every image its own, so sets lose nothing.
    assert [len(part) for part in images] == [600, 400, 797]
    assert len(set.union(*images)) == 1797


def test_data_follow_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = embedded.digits()
    assert torch.equal(torch.get_rng_state(), before)
    assert again.fingerprint() == DIGITS.fingerprint()
    assert embedded.digits(1).fingerprint() != DIGITS.fingerprint()


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_start_from_the_same_weights(method: str) -> None:
    plain = [m for m in convnet("none", 7) if isinstance(m, (nn.Conv2d, nn.Linear))]
    other = [m for m in convnet(method, 7) if isinstance(m, (nn.Conv2d, nn.Linear))]
    for a, b in zip(plain, other, strict=True):
        # weight_norm puts the weight together again from length and direction: equal up to one rounding of each.
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-6, atol=0.0)
    first = convnet(method, 8)[0]
    assert not torch.equal(first.weight, other[0].weight)


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    convnet("batch_norm", 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_the_norm_is_normkits_and_replaces_the_bias(method: str) -> None:
    model = convnet(method, 0)
    norms = {
        "batch_norm": normkit.BatchNorm2d,
        "layer_norm": normkit.Norm,
        "instance_norm": normkit.InstanceNorm2d,
        "group_norm": normkit.GroupNorm,
    }
    convs = [i for i, m in enumerate(model) if isinstance(m, nn.Conv2d)]
    assert len(convs) == len(embedded.CHANNELS)
    for i in convs:
        conv, after = model[i], model[i + 1]
        assert (conv.bias is None) == (method in norms)
        assert isinstance(after, norms.get(method, nn.ReLU))
        assert hasattr(conv, "parametrizations") == (method == "weight_norm")
        if method in norms:
            assert isinstance(model[i + 2], nn.ReLU)
            assert after.weight is not None
            assert after.bias is not None


def test_layer_norm_covers_a_whole_image() -> None:
    norm = convnet("layer_norm", 0)[1]
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    y = norm(x)
    # 0 and 1 up to fp32 rounding over 1024 values, and eps 1e-5 against a variance of 9.
    torch.testing.assert_close(y.mean(dim=(1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(dim=(1, 2, 3), unbiased=False), torch.ones(3), rtol=1e-5, atol=0)


def test_every_method_sees_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    step = replicas.Replicas.step

    def watched(copies: replicas.Replicas, loss: object, inputs: Tensor, targets: Tensor) -> Tensor:
        seen.setdefault(current, []).append(inputs.clone())
        return step(copies, loss, inputs, targets)

    monkeypatch.setattr(replicas.Replicas, "step", watched)
    for current in METHODS:
        one(DIGITS, plan("BN"), Job("tune", current, 4, 0.01, 5))
    for current in METHODS[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen["none"], seen[current], strict=True))
    current = "other seed"
    one(DIGITS, plan("BN"), Job("tune", "none", 4, 0.01, 6))
    assert not torch.equal(seen["none"][0], seen["other seed"][0])


def test_batches_pass_over_all_images_before_any_comes_again() -> None:
    order = run.batches(10, 4, 5, seed=3).flatten()
    assert order[:10].sort().values.tolist() == list(range(10))
    assert order[10:].sort().values.tolist() == list(range(10))


def test_tuning_and_evaluation_share_no_seed() -> None:
    used: set[int] = set()
    for seed in range(3):
        p = design.design(METHODS, (2, 32), 800, 7, 400, seed)
        seeds = [*p.tuning_seeds, *p.evaluation_seeds]
        assert len(set(seeds)) == len(seeds) == 802
        assert not used & set(seeds)
        used |= set(seeds)


def test_tuning_never_looks_at_the_test_images() -> None:
    job = Job("tune", "batch_norm", 4, 0.03, 0)
    nothing = torch.full_like(DIGITS.test.data[0], torch.nan)
    torn = replace(DIGITS, test=Part((nothing, DIGITS.test.data[1])))
    tuned = one(torn, plan("BN"), job)
    assert (tuned.test_error, tuned.recalibrated_error, tuned.gap) == (None, None, None)
    assert tuned == one(DIGITS, plan("BN"), job)


def test_a_run_is_repeatable_and_learns() -> None:
    p = plan("BN", steps=120)
    first, second = (one(DIGITS, p, Job("measure", "batch_norm", 32, 0.1, 100)) for _ in range(2))
    assert first == second
    assert first.state == "trained"
    assert first.test_error is not None
    # Guessing would be 0.9.
    assert first.test_error < 0.3


def test_only_running_statistics_make_a_gap() -> None:
    p = plan("BN", "GN", steps=60)
    batch, group = (one(DIGITS, p, Job("measure", m, 4, 0.03, 100)) for m in ("batch_norm", "group_norm"))
    assert batch.gap is not None
    assert abs(batch.gap) > 0.01
    assert batch.recalibrated_error is not None
    assert group.gap is not None
    # Means over 32 losses of about 1 in fp32, summed in another order.
    assert abs(group.gap) < 1e-5
    assert group.recalibrated_error is None


def test_a_run_that_breaks_off_is_charged_with_guessing() -> None:
    broken = one(DIGITS, plan("BN"), Job("measure", "none", 4, 1e9, 100))
    assert broken.state == "untrained"
    assert broken.test_error == broken.train_error == 0.9
    assert "the loss was" in broken.message
    assert len(broken.losses) < 40


def test_a_run_that_breaks_in_evaluation_alone_is_charged_with_guessing() -> None:
    class Far(nn.Linear):
        seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += self.training
            return super().forward(x) * (1e30 if self.seen and not self.training else 1)

    x = torch.randn(32, 4)
    work = Task(lambda: Far(4, 4), (x, x), (x, x), loss=nn.functional.mse_loss, metric=nn.functional.mse_loss)
    broken = one(work, plan("BN"), Job("measure", "none", 4, 0.01, 100))
    assert broken.state == "untrained"
    assert broken.message == "the loss in evaluation was inf"
    assert broken.test_error == work.chance


def test_a_run_that_never_leaves_guessing_is_untrained() -> None:
    idle = one(DIGITS, plan("BN"), Job("tune", "batch_norm", 4, 1e-9, 0))
    assert idle.state == "untrained"
    assert idle.message == "at the end no better than guessing"


def test_times_are_taken_of_every_method_in_turn() -> None:
    p = plan("BN", "GN")
    seconds = train.time_steps(DIGITS, p, train.Timing(4, p.methods))
    assert set(seconds) == {"none", "batch_norm", "group_norm"}
    assert all(len(taken) == 3 and min(taken) > 0 for taken in seconds.values())


def no_group_norm(method: str, seed: int) -> nn.Module:
    if method == "group_norm":
        raise RuntimeError("no room for it")
    return convnet(method, seed)


def test_a_run_that_raises_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    broken = replace(DIGITS, arms=no_group_norm)
    found = whole(broken, plan("BN", "GN"), tmp_path, silent)
    assert found.complete
    assert {(f.job.method, f.message) for f in found.failures} == {("group_norm", "RuntimeError: no room for it")}
    assert len(found.failures) == 6
    said = "6 runs failed, first group norm at batch size 4 (RuntimeError: no room for it); the report has all."
    assert said in found.note
    assert said in str(found)
    assert all('raise RuntimeError("no room for it")' in f["trace"] for f in found.to_dict()["failures"])
    assert len(found.cell("batch_norm", 4).runs) == 2
    assert found.cell("group_norm", 4).error is None
    assert found.cell("group_norm", 4).time_ratio is None
    assert found.cell("batch_norm", 4).time_ratio is not None
    assert all("in no_group_norm" in f.trace for f in found.failures)
    with Store(tmp_path / "study.sqlite3") as store:
        assert sum(r.state == "failed" for r in store.runs(broken, plan("BN", "GN")).values()) == 6


def test_a_resumed_study_runs_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = plan("BN")
    first = whole(DIGITS, p, tmp_path, silent)
    ran: list[Job] = []
    monkeypatch.setattr(conduct, "execute", lambda t, d, jobs: (ran.extend(jobs), train.execute(t, d, jobs))[1])
    monkeypatch.setattr(conduct, "time_steps", lambda *_: pytest.fail("timed again"))
    second = whole(DIGITS, p, tmp_path, silent)
    assert ran == []
    assert (second.cells, second.pairs) == (first.cells, first.pairs)
    grown = whole(DIGITS, replace(p, seeds=3), tmp_path, silent)
    assert {job.seed for job in ran} == {p.evaluation_seeds[-1] + 1}
    assert len(ran) == 2
    assert len(grown.cell("none", 4).runs) == 3


def test_a_changed_training_shares_nothing(tmp_path: Path) -> None:
    p = plan("BN")
    with Store(tmp_path / "s.sqlite3") as store:
        store.add(DIGITS, p, one(DIGITS, p, Job("tune", "none", 4, 0.01, 0)))
        assert len(store.runs(DIGITS, p)) == 1
        assert store.runs(DIGITS, replace(p, steps=41)) == {}
        assert store.runs(replace(DIGITS, optimizer=torch.optim.SGD), p) == {}
    assert fingerprint(embedded.digits(1), p) != fingerprint(DIGITS, p)


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    p = plan("BN")
    cut = whole(DIGITS, p, tmp_path, stop)
    assert not cut.complete
    assert sum(len(cell.tuning) + len(cell.runs) for cell in cut.cells) == 6
    assert "nothing has been measured yet" in cut.answer
    rest = whole(DIGITS, p, tmp_path, silent)
    assert rest.complete
    assert len(rest.cell("batch_norm", 4).runs) == 2


def test_an_interrupt_that_is_lost_on_its_way_ends_the_study_too(tmp_path: Path) -> None:
    def swallow(done: int, total: int, what: str) -> None:
        if done == 6:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    cut = whole(DIGITS, plan("BN"), tmp_path, swallow)
    assert not cut.complete
    assert sum(len(cell.tuning) + len(cell.runs) for cell in cut.cells) == 6
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_before_anything_is_passed_on(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole(DIGITS, plan("BN"), tmp_path, stop)


def test_an_unforeseen_error_says_what_is_kept(tmp_path: Path) -> None:
    def fail(done: int, total: int, what: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        whole(DIGITS, plan("BN"), tmp_path, fail)
    assert caught.value.__notes__ == [
        f"Finished runs are kept in {tmp_path / 'study.sqlite3'}: the same call goes on from them."
    ]


def test_a_folder_or_a_store_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.sqlite3"
    file.write_text("no database", encoding="utf-8")
    with pytest.raises(
        StateError, match=r"be opened \(file is not a database\): move it away, or choose another folder"
    ):
        whole(DIGITS, plan("BN"), tmp_path, silent)
    assert file.read_text(encoding="utf-8") == "no database"
    with pytest.raises(
        ArgumentError, match=r"one can be made, got '.*study.sqlite3/x' \(Not a directory\): name another"
    ):
        made(file / "x")


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import normkit\n"
        "normkit.compare(methods=['BN'], batch_sizes=[8], seeds=2, trials=3, steps=40, workers=2, "
        f"out={str(tmp_path)!r}, progress=False)\n"
    )
    # Without an answer it would wait for ever; importing torch twice takes a few seconds.
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "A script that calls compare must do so under `if __name__ == '__main__':`" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"seeds": 801}, "seeds must be at most 800"),
        ({"trials": 2}, "trials must be at least 3, got 2"),
        ({"steps": 10}, "steps must be at least 40, got 10: a shorter run has no curve"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_sizes": ()}, r"there must be a batch size, and none below 1, got \[\]"),
        ({"methods": ("local_response_norm",)}, "compare trains none, unchanged, batch_norm"),
        ({"methods": ("group_nrom",)}, "did you mean 'group_norm'"),
    ],
)
def test_a_design_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    given = {"methods": ("BN",), "batch_sizes": (4,), "seeds": 2, "trials": 3, "steps": 40, "seed": 0} | change
    with pytest.raises(ArgumentError, match=message):
        design.design(**given)  # type: ignore[arg-type]
