"""The figures of a run as TensorBoard reads them."""

import pytest
from conftest import run_script
from test_compare import write_run

pytest.importorskip("tensorboard")


def test_each_number_of_each_step_is_there_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = write_run(tmp_path, "grpo", 0, [0, 100, 300], [0.25, 0.5, 0.75])
    for _ in range(2):  # a second call replaces what the first one wrote
        assert run_script("lab.tensorboard", str(tmp_path)).status == 0
    found = EventAccumulator(str(path)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("eval_pass1")] == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert [event.value for event in found.Scalars("tokens_solution")] == [0, 100, 300]
    assert run_script("lab.tensorboard", str(tmp_path / "no")).status == 1
