"""GN-2: group norm is sensitive to the number of groups and channels."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.analysis import stats
from normkit.study.claims.experiment import Experiment, Measured, Tables
from normkit.study.claims.measures import Effect, test_error


def spread(workload: str, counts: tuple[int, ...]) -> Effect:
    """Error of the worst number of groups minus that of the best.

    For each seed they are picked on the other seeds: if they were picked and measured on the same runs, the worst would
    be worse than the best even where all are alike. The p is that of a permutation test over all numbers of groups.
    """

    def effect(tables: Tables) -> Measured | None:
        rows = stats.complete(
            [{run.trial.seed: run.test_error for run in tables[workload][f"group_norm:{n}", 16].runs} for n in counts]
        )
        if len(rows) < 3:
            return None
        return Measured(stats.held_out_range(rows), p=stats.permutation_test(rows))

    return effect


def experiment(width: int, counts: tuple[int, ...]) -> Experiment:
    """All numbers of groups that divide the number of channels."""
    listed = ", ".join(map(str, counts))
    listed_zh = "、".join(map(str, counts))
    return Experiment(
        claim="GN-2",
        name=f"{width} channels",
        question=Text(
            f"Does the error depend on the number of groups in a network with {width} channels?",
            f"在 {width} 通道的网络中，错误率是否取决于组数？",
        ),
        design=Text(
            f"Four convolutions with {width} channels, batch 16, 200 steps; {listed} groups, each at its own best learning "
            "rate.",
            f"四个 {width} 通道卷积层，批量 16，训练 200 步；组数取 {listed_zh}，各自使用最佳学习率。",
        ),
        measure=Text(
            "Test error of the worst number of groups minus that of the best, both chosen on other seeds than those "
            "measured; p by permutation.",
            "最差组数与最佳组数的测试错误率之差，二者均由其他随机种子选出；p 值由置换检验给出。",
        ),
        unit="points",
        effect=spread(f"groups-{width}", counts),
        cells=tuple((f"groups-{width}", f"group_norm:{n}", 16) for n in counts),
        show=test_error,
    )


EXPERIMENTS = (experiment(8, (1, 2, 4, 8)), experiment(16, (1, 2, 4, 8, 16)))
