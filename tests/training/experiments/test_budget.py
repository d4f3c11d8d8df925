from __future__ import annotations

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from training import curves, logs
from training.experiments import budget
from training.experiments.budget import Settings, Task

TASK = Task(
    name="next_word",
    title="Words",
    scalar="valid/perplexity",
    measure="perplexity",
    unit="words",
    windowed=True,
)


def log(directory: Path, values: dict[str, dict[int, float]]) -> None:
    writer = EventFileWriter(str(directory))
    for name, series in values.items():
        for step, value in series.items():
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(step=step, summary=summary))
    writer.close()


def test_a_run_is_read_and_the_others_are_missing(tmp_path: Path) -> None:
    log(
        tmp_path / "next-word-gru" / "1",
        {
            "valid/perplexity": {10: 300.0, 20: 200.5},
            logs.PROCESSOR_MINUTES: {10: 1.0, 20: 2.04},
        },
    )
    settings = Settings(tasks=(TASK,), runs=str(tmp_path))
    (row,) = budget.measure(settings).rows
    (curve,) = row.curves
    run = budget.runs.load(budget._CONFIGS / "next_word_gru.toml")
    words = run.training.batch_size * run.training.bptt
    assert curve.read == (10 * words, 20 * words)
    assert curve.values == (300.0, 200.5)
    assert budget.best(TASK, curve) == 200.5
    assert row.missing == ("rnn", "lstm", "transformer")
    text = budget.describe(settings, budget.Findings(rows=(row,)))
    assert f"over whole runs GRU 200.5 ({20 * words:,} words, 2 min)" in text
    assert "no run of RNN, LSTM, Transformer" in text


def test_runs_are_ranked_by_what_all_have_read_and_as_they_ended() -> None:
    short = budget.Curve(architecture="lstm", run="a", read=(10, 20), values=(300.0, 250.0))
    long = budget.Curve(architecture="rnn", run="b", read=(20, 40), values=(260.0, 200.0))
    row = budget.Row(task="next_word", curves=(short, long), missing=())
    text = budget.describe(Settings(tasks=(TASK,)), budget.Findings(rows=(row,)))
    assert "within the 20 words that all have read LSTM 250, RNN 260;" in text
    assert "over whole runs RNN 200 (40 words), LSTM 250 (20 words)." in text


def test_a_resumed_run_counts_the_later_value(tmp_path: Path) -> None:
    log(tmp_path, {"train/loss": {1: 3.0, 2: 2.0}})
    (first,) = tmp_path.iterdir()
    first.rename(tmp_path / "events.out.tfevents.0000000001.a")
    log(tmp_path, {"train/loss": {2: 1.5, 3: 1.0}})
    assert logs.scalars(tmp_path) == {"train/loss": ((1, 3.0), (2, 1.5), (3, 1.0))}


def test_a_curve_is_a_picture_and_no_log_is_none(tmp_path: Path) -> None:
    assert curves.draw(tmp_path) == b""
    log(tmp_path, {"train/loss": {1: 3.0, 2: 2.0}, "valid/span F1": {2: 50.0}})
    drawn = curves.draw(tmp_path)
    assert drawn.startswith(b"\x89PNG")
    assert drawn == curves.draw(tmp_path)
